"""Collect: the results of finished runs, as one table for all and as figures per case for the statistics."""

import json
import math
from statistics import fmean
from typing import Any

from scripts.data import case_name
from scripts.evaluation import METRIC_NAMES
from scripts.evaluation.summary import ALL_CLASSES
from tools.tables import read_csv

from .plan import Run

RECORD_COLUMNS = (
    *("iterations", "parameters", "training_seconds", "peak_memory_mb", "peak_gpu_memory_mb"),
    *("threads", "device", "python", "torch", "monai", "git_commit"),
)
COLUMNS = (
    *("method", "num_labeled", "labeled_draw", "seed", "class"),
    *(f"{metric}{suffix}" for metric in METRIC_NAMES for suffix in ("", "_std", "_n")),
    *("empty_predictions", "failed_cases", "configs", "overrides"),
    *RECORD_COLUMNS,
)
# class -> metric -> case -> value
CaseValues = dict[str, dict[str, dict[str, float]]]


def failed_cases(run: Run) -> dict[str, str]:
    """The cases that the evaluation of a run could not read, segment or write, and why."""
    path = run.folder / "failures.csv"
    return {case_name(row["case"]): row["reason"] for row in read_csv(path)} if path.is_file() else {}


def result_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of a finished run for results.csv: one per class and, if there are several, one for their mean.

    What was recorded while it trained is blank for a run without a record.json, which the bundle's own commands
    do not write.
    """
    record_file = run.folder / "record.json"
    record = json.loads(record_file.read_text()) if record_file.is_file() else {}
    fixed = {
        "method": run.method,
        "num_labeled": run.num_labeled,
        "labeled_draw": run.draw,
        "seed": run.seed,
        "failed_cases": json.dumps(list(failed_cases(run))),
        "configs": " ".join(run.configs),
        "overrides": json.dumps(run.overrides),
        **{column: record.get(column) for column in RECORD_COLUMNS},
    }
    rows: dict[str, dict[str, Any]] = {}
    for line in read_csv(run.folder / "metrics_summary.csv"):
        row = rows.setdefault(line["class"], {**fixed, "class": line["class"]})
        row["empty_predictions"] = line["empty_predictions"]
        for column, suffix in (("mean", ""), ("std", "_std"), ("n", "_n")):
            row[line["metric"] + suffix] = line[column]
    return list(rows.values())


def case_values(run: Run) -> CaseValues:
    """Every metric of every case of a finished run, by class; NaN where a distance does not exist.

    With several classes "all" is added, the mean over the classes of a case that are known. It has no distance if one
    of them has none: the mean of the others would make a method that misses a class look better.
    """
    values: CaseValues = {}
    for row in read_csv(run.folder / "metrics.csv"):
        for metric in METRIC_NAMES:
            cases = values.setdefault(row["class"], {}).setdefault(metric, {})
            cases[row["case"]] = float(row[metric])
    if len(values) > 1:
        classes = list(values.values())
        values[ALL_CLASSES] = {
            metric: {
                case: fmean([c[metric][case] for c in classes if math.isfinite(c["dice"][case])] or [math.nan])
                for case in classes[0][metric]
            }
            for metric in METRIC_NAMES
        }
    return values
