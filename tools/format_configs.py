"""Format configs: every JSON config in one form, in which what is short stands on one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 140
INDENT = "    "


def formatted(value: Any, column: int = 0, depth: int = 0) -> str:
    """``value`` as JSON, indented by four spaces; a list or map that fits on a line of 140 characters is on one.

    Args:
        value: what JSON can hold.
        column: characters before it on its line.
        depth: how deep it is nested; the outermost map always has a line for each key.
    """
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value or (depth and column + len(flat) < WIDTH):
        return flat
    inner = INDENT * (depth + 1)
    if isinstance(value, list):
        lines = [inner + formatted(item, len(inner), depth + 1) for item in value]
    else:
        lines = []
        for key, item in value.items():
            start = f"{inner}{json.dumps(key, ensure_ascii=False)}: "
            lines.append(start + formatted(item, len(start), depth + 1))
    opening, closing = "[]" if isinstance(value, list) else "{}"
    return opening + "\n" + ",\n".join(lines) + f"\n{INDENT * depth}{closing}"


def config_files(root: Path = ROOT) -> list[Path]:
    """The configs, overlays, presets and plans of the project."""
    return sorted([*(root / "configs").rglob("*.json"), *(root / "benchmarks" / "plans").glob("*.json")])


def main() -> None:
    """Rewrites the configs that are formatted otherwise; with ``--check`` names them and exits with 1 instead."""
    check = "--check" in sys.argv[1:]
    others = []
    for path in config_files():
        text = path.read_text(encoding="utf-8")
        if text != (new := formatted(json.loads(text)) + "\n"):
            others.append(path)
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in others:
        print(f"{'would reformat' if check else 'reformatted'} {path.relative_to(ROOT)}")
    sys.exit(1 if check and others else 0)


if __name__ == "__main__":
    main()
