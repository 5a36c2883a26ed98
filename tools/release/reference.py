"""Reference: writes docs/reference.md, every config id with its type, its defaults and its meaning.

python -m tools.release.reference
"""

import json
from pathlib import Path
from typing import Any

from scripts.command import ROOT
from scripts.settings import IDS, PARTS, on_resume
from tools.command_line import run_command

FILES = ("train", "evaluate", "inference", "preflight")
MERGE = "+"  # MONAI's prefix of an id that is merged into an earlier file's
HEAD = """# Config ids

`python -m tools.release.reference` generates this page from `configs/{train,evaluate,inference,preflight}.json` and
`scripts/settings.py`; edit those files instead.

Change any id on the command line (`--num_labeled 10`, `--optimizer#momentum 0.95`, `--patch_size "[96,96,96]"`) or
with an overlay, a JSON file of ids that comes later in `--config_file`. Values that begin with `$` are Python
expressions; `@id` is the value of another id. Methods add ids of their own ([methods/](methods/)).

The columns show the default in each file; "–" means that the file does not set the id. evaluate.json and preflight.json
are overlays of train.json, so train.json's value holds where they set none. Tables in which evaluate.json sets no id
have no column for it.

When a run continues, an id that is "fixed" must have its former value, one that is "named" may have changed and is then
named in a warning, and a "free" one may change ([resume](how_to/resume_a_run.md)).

File formats are in [data.md](data.md), metrics in [metrics.md](metrics.md), options of inference in
[inference.md](inference.md), checks in [preflight.md](preflight.md). The commands list their arguments with `--help`.
"""
PARTS_HEAD = """
## Parts of `train` and `validate`

MONAI's clients find the parts of a bundle by these names. Change a part on the command line, for example with
`--validate#inferer#sw_batch_size 1`.
"""


def read_configs(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """The content of the four config files by name, ids without the prefix of merging."""
    configs = {}
    for name in FILES:
        content = json.loads((root / "configs" / f"{name}.json").read_text(encoding="utf-8"))
        configs[name] = {key.removeprefix(MERGE): value for key, value in content.items()}
    return configs


def top_level(config: dict[str, Any]) -> set[str]:
    """The top-level ids that a file sets, or whose parts it sets (``validate#dataset`` counts as ``validate``)."""
    return {key.partition("#")[0] for key in config}


def parts_of(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The parts of ``train`` or ``validate``, nested or written with ``#``."""
    flat = {key.removeprefix(f"{name}#"): value for key, value in config.items() if key.startswith(f"{name}#")}
    return {**config.get(name, {}), **flat}


def shown(value: Any) -> str:
    """A default for a cell: literals as JSON, objects by their class, long lists and maps by their size."""
    if isinstance(value, dict):
        return code(value["_target_"].removeprefix("scripts.")) if "_target_" in value else f"{len(value)} parts"
    if isinstance(value, list) and any(isinstance(item, (dict, str)) for item in value) and len(str(value)) > 40:
        return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
    return code(value if isinstance(value, str) and value[:1] in "$@%" else json.dumps(value))


def code(text: str) -> str:
    """``text`` as code within a table's cell."""
    return "`" + text.replace("|", "\\|") + "`"


def cell(config: dict[str, Any], key: str) -> str:
    """A file's value of an id, also where the file sets only parts of it; "–" where it sets nothing."""
    if key in config:
        return shown(config[key])
    parts = parts_of(config, key)
    return shown(parts) if parts else "–"


def id_rows(configs: dict[str, dict[str, Any]], section: str) -> list[str]:
    """The table of a section: type, defaults in the files, and meaning of every id.

    The column of evaluate.json, which sets few ids, is there where it sets one of the section.
    """
    own = top_level(configs["evaluate"]) & set(IDS[section])
    files = ["train", *(["evaluate"] if own else []), "inference"]
    resumes = section in ("Data", "Network", "Training")
    lines = [f"| id | type | {' | '.join(f'{name}.json' for name in files)} | meaning |" + resumes * " on resume |"]
    lines.append("|---" * (len(files) + 3 + resumes) + "|")
    for key, (kind, meaning) in IDS[section].items():
        # What a file is for stands in the file.
        defaults = [""] * len(files) if key == "about" else [cell(configs[name], key) for name in files]
        last = f" {on_resume(key)} |" if resumes else ""
        lines.append(f"| `{key}` | {kind} | {' | '.join(defaults)} | {meaning} |{last}")
    return lines


def part_rows(configs: dict[str, dict[str, Any]]) -> list[str]:
    """The table of the parts, in training and in evaluation."""
    lines = ["| id | train.json | evaluate.json | meaning | on resume |", "|---|---|---|---|---|"]
    for name, parts in PARTS.items():
        training, evaluation = (parts_of(configs[file], name) for file in ("train", "evaluate"))
        for key, meaning in parts.items():
            cells = (f"`{name}#{key}`", cell(training, key), cell(evaluation, key), meaning, on_resume(f"{name}#{key}"))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(root: Path = ROOT) -> str:
    """The text of docs/reference.md."""
    configs = read_configs(root)
    lines = [HEAD]
    for section in IDS:
        lines += [f"## {section}", "", *id_rows(configs, section), ""]
    return "\n".join([*lines[:-1], PARTS_HEAD, *part_rows(configs)]) + "\n"


def main(path: str | Path = ROOT / "docs" / "reference.md") -> None:
    """Writes the page.

    Args:
        path: of the Markdown file.
    """
    Path(path).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
