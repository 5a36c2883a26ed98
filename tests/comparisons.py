"""Helpers of the comparison's tests: plans, finished runs, and small programs in place of training and evaluation."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

from scripts.evaluation import METRIC_NAMES, summarize
from scripts.evaluation.case_metrics import CASE_COLUMNS, SUMMARY_COLUMNS
from tools.comparison.planned_run import Run, run_name
from tools.comparison.processes import Processes

NAN = math.nan


def plan_file(folder: Path, **changes: object) -> Path:
    """A plan of two methods; a change to None removes its key."""
    content = {
        "configs": ["configs/train.json"],
        "common": {"base_filters": 4, "max_iterations": 10},
        "methods": {"supervised": ["configs/methods/supervised.json"], "dbisl": ["configs/methods/dbisl.json"]},
        "num_labeled": [5, 20],
        "seeds": [0, 1],
        "baseline": "supervised",
        **changes,
    }
    path = folder / "plan.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def finished_run(
    folder: Path,
    method: str,
    seed: int,
    dice: dict[tuple[str, str], float],
    *,
    labels: int = 5,
    draw: int = 0,
    **record: object,
) -> Run:
    """A run whose folder has the tables of an evaluation; its other metrics follow from Dice, NaN where it is 0."""
    place = folder / run_name(method, labels, seed, draw)
    run = Run(method, labels, seed, ("configs/train.json",), {"base_filters": 4}, place, draw=draw)
    run.folder.mkdir(parents=True)
    cases = [
        {"case": case, "class": name, "empty_prediction": d == 0}
        | dict.fromkeys(METRIC_NAMES, 10 * (1 - d) if d else NAN)
        | {"dice": d, "jaccard": d / (2 - d), "surface_dice": d}
        for (case, name), d in dice.items()
    ]
    for name, columns, table in (
        ("metrics.csv", CASE_COLUMNS, cases),
        ("metrics_summary.csv", SUMMARY_COLUMNS, summarize(cases)),
    ):
        with (run.folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(table)
    if record:
        (run.folder / "record.json").write_text(json.dumps(record))
    return run


# What training and evaluation leave.
DONE = """
if run_id == 'training':
    (folder / 'record.json').touch()
else:
    (folder / 'metrics.csv').write_text('case,class\\na,1\\n')
    (folder / 'metrics_summary.csv').touch()
"""


class Programs(Processes):
    """Runs ``source`` instead of the bundle; it finds the run's folder in ``folder`` and the command in ``run_id``."""

    source = ""

    def command(self, run_id: str, arguments: Path) -> list[str]:
        head = f"from pathlib import Path; run_id = {run_id!r}; folder = Path({str(arguments.parent)!r})\n"
        return ["-c", head + self.source + DONE]


def some_runs(folder: Path, *methods: str) -> list[Run]:
    return [Run(method, 5, 0, ("configs/train.json",), {}, folder / f"{method}_5_0") for method in methods]
