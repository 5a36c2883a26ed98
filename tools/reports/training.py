"""Report: one HTML page about a training run, finished or not: curves, pictures, where it ran and its config.

python -m tools.reports.training --output_dir outputs
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from scripts.data import DataError
from scripts.pictures.panels import png
from tools.command_line import run_command

from .curves import curves_figure
from .evaluation import page, picture, table

# A page holds its pictures; of more, evenly spread ones are taken.
MOST_PICTURES = 12


def write_page(output_dir: str | Path, *, title: str = "Training") -> tuple[Path, Path]:
    """Writes ``curves.png`` and ``run.html`` into the output folder of a training, and returns their paths.

    Args:
        output_dir: of the training; must hold training_log.csv. validation_log.csv, run.json and pictures/ are used if
            they are there.
        title: heading.

    Raises:
        DataError: when there is no training_log.csv with a row.
    """
    folder = Path(output_dir)
    log = _rows(folder / "training_log.csv")
    if not log:
        raise DataError(f"{folder / 'training_log.csv'} is missing or empty: give the output_dir of a training.")
    curves, html = folder / "curves.png", folder / "run.html"
    description = folder / "run.json"
    about = json.loads(description.read_text(encoding="utf-8")) if description.is_file() else {}
    validations = _rows(folder / "validation_log.csv")
    curves.write_bytes(png(curves_figure(log, validations)))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_summary(folder, log[-1], about.get('config') or {}))}</p>",
        "<h2>Curves</h2>",
        picture(curves.read_bytes(), "loss, terms, weights and learning rate over the iterations"),
        *_last_row("Last row of the log", log),
        *_last_row("Last validation", validations),
        *_pictures(sorted((folder / "pictures").glob("iteration_*.png"))),
        *_starts(about.get("starts", [])),
    ]
    if about.get("config"):
        config = escape(json.dumps(about["config"], indent=4))
        parts.append(f"<h2>Config</h2>\n<details><summary>merged</summary><pre>{config}</pre></details>")
    html.write_text(page(title, parts), encoding="utf-8")
    return curves, html


def _summary(folder: Path, last: dict[str, str], config: dict[str, Any]) -> str:
    planned = config.get("max_iterations")
    parts = [config[name] for name in ("objective", "network_def") if isinstance(config.get(name), dict)]
    what = "".join(f"{part['_target_'].rsplit('.', 1)[-1]}, " for part in parts if "_target_" in part)
    logged = f"{last['iteration']} of {planned}" if isinstance(planned, int) else last["iteration"]
    return f"{folder}: {what}logged up to iteration {logged}, after {last['seconds']} s of training."


def _last_row(title: str, log: Sequence[dict[str, str]]) -> list[str]:
    if not log:
        return []
    rows = [[name, value] for name, value in log[-1].items() if value]
    return [f"<h2>{title}</h2>", table(["quantity", "value"], rows)]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _pictures(paths: Sequence[Path]) -> list[str]:
    if not paths:
        return []
    step = max(1, -(-len(paths) // MOST_PICTURES))
    shown = list(reversed(paths[::-1][::step]))  # the last one is always among them
    note = f"{len(shown)} of the {len(paths)} in {paths[0].parent.name}/."
    return ["<h2>Pictures</h2>", f'<p class="note">{note}</p>', *(picture(p.read_bytes(), p.stem) for p in shown)]


def _starts(starts: Sequence[dict[str, Any]]) -> list[str]:
    if not starts:
        return []
    names = list(dict.fromkeys(name for start in starts for name in start))
    rows = [[name, *(_text(start.get(name)) for start in starts)] for name in names]
    header = ["", *(f"start {number}" for number in range(1, len(starts) + 1))]
    return ["<h2>Command and environment</h2>", table(header, rows)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_text(inner)}" for name, inner in value.items())
    return " ".join(value) if isinstance(value, list) else str(value)


def main(output_dir: str, title: str = "Training") -> None:
    """Writes the page of a training.

    Args:
        output_dir: of the training.
        title: heading.
    """
    print("\n".join(map(str, write_page(output_dir, title=str(title)))))


if __name__ == "__main__":
    run_command(main)
