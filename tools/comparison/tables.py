"""Tables: results.csv, comparison.csv, comparison.md and the plots of the runs of a plan that are finished."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.evaluation.metrics import OVERLAPS
from scripts.evaluation.summary import ALL_CLASSES
from tools.tables import METRIC_TITLES, markdown_table, write_csv

from .cases import data_lines, failure_lines
from .collect import COLUMNS, CaseValues, case_values, failed_cases, result_rows
from .gap import GAP_COLUMNS, gap_closed
from .headline import gap_lines, number, spread_lines
from .paired import SUMMARY_COLUMNS, TEST_COLUMNS, paired_test, summary
from .plan import Plan, Run
from .plots import plot_dice, plot_differences, plot_gap

SHOWN = ("dice", "jaccard", "hd95_mm", "asd_mm")
TESTED = ("dice", "hd95_mm")
KEY_COLUMNS = ("method", "num_labeled", "class", "metric")
# (method, num_labeled) -> (draw, seed) -> values
Collected = dict[tuple[str, int], dict[tuple[int, int], CaseValues]]


def write_report(plan: Plan, runs: Sequence[Run], output_dir: str | Path) -> str:
    """Collects the finished ones of ``runs`` into ``output_dir``.

    Cases that failed in a run are missing there. Writes results.csv (one row per run and class), comparison.csv (one
    row per method, number of labels, class and metric: deviations, share of the gap, paired test), comparison.md (the
    same for reading, and what failed or differs in the data), gap.png, dice.png and differences.png.

    Returns:
        The text of comparison.md.
    """
    folder = Path(output_dir)
    finished = [run for run in runs if run.finished]
    collected: Collected = {}
    for run in finished:
        collected.setdefault((run.method, run.num_labeled), {})[run.draw, run.seed] = case_values(run)
    write_csv(folder / "results.csv", COLUMNS, [row for run in finished for row in result_rows(run)])
    failed = {case for run in finished for case in failed_cases(run)}
    rows = comparison_rows(plan, collected, all_cases(collected, failed))
    columns = (*KEY_COLUMNS, *SUMMARY_COLUMNS, "all_cases", *GAP_COLUMNS, *TEST_COLUMNS)
    write_csv(folder / "comparison.csv", columns, rows)
    notes = [*data_lines(finished), *failure_lines(finished)]
    lists = sorted({run.evaluated_list for run in finished})
    text = markdown(plan, rows, [run.name for run in runs if run not in finished], notes=notes, lists=lists)
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    if finished:
        plot_gap(rows, plan, folder / "gap.png")
        plot_dice(rows, plan, folder / "dice.png")
        plot_differences(collected, plan.baseline, folder / "differences.png")
    return text


def of_metric(runs: Mapping[tuple[int, int], CaseValues], name: str, metric: str) -> dict[tuple[int, int], dict]:
    """(draw, seed) -> case -> value of one class and metric."""
    return {run: values[name][metric] for run, values in runs.items() if name in values}


def all_cases(collected: Collected, failed: set[str]) -> dict[str, int]:
    """class -> how many cases any of the runs has: those with a known label of the class, and those that failed."""
    cases: dict[str, set[str]] = {}
    for runs in collected.values():
        for values in runs.values():
            for name, metrics in values.items():
                measured = {case for case, dice in metrics["dice"].items() if not math.isnan(dice)}
                cases.setdefault(name, set(failed)).update(measured)
    return {name: len(of_class) for name, of_class in cases.items()}


def comparison_rows(plan: Plan, collected: Collected, total: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rows of comparison.csv, in the plan's order; a baseline's test columns are blank.

    The share of the gap is that of Dice; the baseline's own row has it, too, 0, where there is room. ``total`` is from
    :func:`all_cases`.
    """
    rows = []
    top = next((runs for (method, _), runs in collected.items() if method == plan.ceiling), {})
    for labels in plan.num_labeled:
        for method in plan.methods:
            runs, baseline = (collected.get((name, labels), {}) for name in (method, plan.baseline))
            for name, metrics in next(iter(runs.values()), {}).items():
                for metric in metrics:
                    values, start = of_metric(runs, name, metric), of_metric(baseline, name, metric)
                    row = {"method": method, "num_labeled": labels, "class": name, "metric": metric, **summary(values)}
                    row["all_cases"] = total[name]
                    if method != plan.ceiling and metric == "dice":
                        row |= gap_closed(values, start, of_metric(top, name, metric))
                    if method != plan.baseline and start:
                        row |= paired_test(values, start, higher_is_better=metric in OVERLAPS)
                    rows.append(row)
    return rows


def markdown(
    plan: Plan, rows: Sequence[dict[str, Any]], missing: Sequence[str], *, notes: Sequence[str], lists: Sequence[str]
) -> str:
    """The tables of comparison.md, one per class, the mean over the classes first.

    Args:
        plan, rows: of comparison.csv.
        missing: names of the runs that are not finished.
        notes: lines above the tables.
        lists: those of dataset.json whose cases were evaluated.
    """
    lines = [
        "# Comparison",
        "",
        *gap_lines(plan, rows),
        f"Mean +- standard deviation over the {' and '.join(lists)} cases, each averaged over the runs (draws and "
        "seeds); in brackets the standard deviation of the runs' means. A distance that does not exist (one of the two "
        "masks is empty) is left out of its mean. A figure of fewer than all cases says of how many.",
        "",
        f"Against {plan.baseline}: mean difference +- its standard error over the cases, each averaged over the common "
        "runs; p of the Wilcoxon signed-rank test, not corrected for the number of methods; cases that are better.",
        "",
        *notes,
    ]
    classes = list(dict.fromkeys(row["class"] for row in rows))
    for name in sorted(classes, key=lambda name: name != ALL_CLASSES):
        if len(classes) > 1:
            lines += ["## Mean over the classes" if name == ALL_CLASSES else f"## {name}", ""]
        lines += _class_table(plan.baseline, [row for row in rows if row["class"] == name])
    lines += spread_lines(rows)
    own = {name: dict(method.overrides) for name, method in plan.methods.items() if method.overrides}
    lines += [f"Settings that only {name} has: `{json.dumps(settings)}`" for name, settings in own.items()]
    if missing:
        lines += [f"Not finished: {', '.join(missing)}"]
    return "\n".join(lines).rstrip() + "\n"


def _class_table(baseline: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    header = ["method", "labels", "runs", *(METRIC_TITLES[metric] for metric in SHOWN)]
    for metric in TESTED:
        header += [f"{METRIC_TITLES[metric]}, difference to {baseline}", "p", "better"]
    lines = []
    by_run: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_run.setdefault((row["method"], row["num_labeled"]), {})[row["metric"]] = row
    for (method, labels), metrics in by_run.items():
        cells = [method, str(labels), str(metrics["dice"]["runs"])]
        cells += [_mean_cell(metrics[metric], metric) for metric in SHOWN]
        for metric in TESTED:
            cells += _test_cells(metrics[metric], metric)
        lines.append(cells)
    return [markdown_table(header, lines), ""]


def _digits(metric: str) -> int:
    return 3 if metric in OVERLAPS else 2


def _mean_cell(row: dict[str, Any], metric: str) -> str:
    if row["mean"] is None:
        return "-"
    digits = _digits(metric)
    cell = f"{number(row['mean'], digits)} +- {number(row['std_cases'], digits)} ({number(row['std_runs'], digits)})"
    return cell + _fewer(row["cases"], row)


def _fewer(cases: int, row: dict[str, Any]) -> str:
    return "" if cases == row["all_cases"] else f", {cases} of {row['all_cases']} cases"


def _test_cells(row: dict[str, Any], metric: str) -> list[str]:
    if not row.get("pairs"):
        return ["", "", ""]
    digits = _digits(metric)
    difference = f"{number(row['difference'], digits, signed=True)} +- {number(row['standard_error'], digits)}"
    return [difference + _fewer(row["pairs"], row), f"{row['p_value']:.2g}", f"{row['better']} of {row['pairs']}"]
