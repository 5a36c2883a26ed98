"""Evaluation: the part of a run's page with the tables and pictures of its finished evaluation."""

from collections.abc import Mapping
from html import escape

from scripts.data import case_name
from scripts.pictures.html import picture, table

from .results import EvaluationResults, shown

SUMMARY_NOTE = (
    "Mean, standard deviation and 95 % bootstrap interval of the mean over the cases. n counts the cases with a finite "
    "value: a distance does not exist where exactly one of the masks is empty, and such cases leave its mean. The "
    "interval says how the mean would vary over other cases, not over other trainings."
)
VALIDATION_NOTE = "Validation cases: models may have been chosen by them, so that test cases can turn out worse."
CASE_NOTE = "From the lowest to the highest Dice, averaged over the classes of the case."


def summary_table(results: EvaluationResults) -> str:
    """The table of metrics_summary.csv; what an older file does not have is left blank."""
    header = ["class", "metric", "mean", "std", "95 % interval", "n", "empty predictions"]
    rows = [
        [
            line["class"],
            line["metric"],
            shown(line["mean"]),
            shown(line["std"]),
            f"{shown(line.get('ci95_low'))} to {shown(line.get('ci95_high'))}",
            line["n"],
            line["empty_predictions"],
        ]
        for line in results.summary
    ]
    return table(header, rows)


def failures(results: EvaluationResults) -> list[str]:
    """What failures.csv says, as pieces of the page; none where no case failed."""
    failed = [[case_name(row["case"]), row["reason"]] for row in results.failures]
    if not failed:
        return []
    count = len(failed) + len(results.cases)
    return [
        f"<p><strong>{len(failed)} of {count} cases failed</strong>: nothing below is about them.</p>",
        table(["case", "reason"], failed),
    ]


def evaluation_parts(results: EvaluationResults, figures: Mapping[str, bytes]) -> list[str]:
    """What the page says about an evaluation, as pieces of HTML, with the PNG files of ``draw_figures`` in it."""
    tolerances = sorted({row["surface_tolerance_mm"] for row in results.rows if row.get("surface_tolerance_mm")})
    tolerance = f" Surface Dice at a tolerance of {', '.join(tolerances)} mm." if tolerances else ""
    rows = [
        [case, name, *(shown(results.value(case, name, metric)) for metric in results.metrics)]
        for case in results.ordered()
        for name in results.classes
    ]
    slices = "\n".join(picture(png, name) for name, png in figures.items() if name.startswith("slices_"))
    return [
        "<h2>Evaluation</h2>",
        f"<p>{len(results.cases)} {f'{results.case_list} ' if results.case_list else ''}"
        f"case{'s' if len(results.cases) > 1 else ''}; "
        f"class{'es' if len(results.classes) > 1 else ''}: "
        f"{escape(', '.join(results.classes))}.{escape(tolerance)}</p>",
        *([f"<p><strong>{VALIDATION_NOTE}</strong></p>"] if results.case_list == "validation" else []),
        *failures(results),
        "<h3>Summary</h3>",
        summary_table(results),
        f'<p class="note">{escape(SUMMARY_NOTE)}</p>',
        "<h3>Distribution</h3>",
        picture(figures["distribution"], "distribution of every metric over the cases"),
        "<h3>Worst, median and best case</h3>",
        slices,
        picture(figures["surfaces"], "surfaces of reference and prediction"),
        "<h3>Cases</h3>",
        f'<p class="note">{escape(CASE_NOTE)}</p>',
        table(["case", "class", *results.metrics], rows),
    ]
