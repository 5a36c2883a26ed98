"""Report: one HTML file with the tables and pictures of any finished evaluation, which needs no other file.

python -m tools.reports.evaluation --output_dir outputs/left_atrium --dataset_dir /data/left_atrium
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from scripts.data import case_name
from tools.command_line import run_command

from .figures import draw_figures
from .results import EvaluationResults, shown

STYLE = """
body { font-family: system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }
th { border-bottom: 2px solid #888; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
img { max-width: 100%; }
.note { color: #555; max-width: 48rem; }
"""
SUMMARY_NOTE = (
    "Mean, standard deviation and 95 % bootstrap interval of the mean over the cases. n counts the cases with a finite "
    "value: a distance does not exist where exactly one of the masks is empty, and such cases leave its mean. The "
    "interval says how the mean would vary over other cases, not over other trainings."
)
VALIDATION_NOTE = "Validation cases: models may have been chosen by them, so that test cases can turn out worse."
CASE_NOTE = "From the lowest to the highest Dice, averaged over the classes of the case."


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; every cell is escaped."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


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


def case_table(results: EvaluationResults) -> str:
    """The table of metrics.csv, worst case first."""
    order = results.ordered()
    rows = [
        [case, name, *(shown(results.value(case, name, metric)) for metric in results.metrics)]
        for case in order
        for name in results.classes
    ]
    return table(["case", "class", *results.metrics], rows)


def picture(png: bytes, description: str) -> str:
    """An HTML image that holds its own data."""
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def html_report(results: EvaluationResults, figures: Mapping[str, bytes], *, title: str) -> str:
    """The whole page, with the PNG files of :func:`draw_figures` in it."""
    tolerances = sorted({row["surface_tolerance_mm"] for row in results.rows if row.get("surface_tolerance_mm")})
    tolerance = f" Surface Dice at a tolerance of {', '.join(tolerances)} mm." if tolerances else ""
    slices = "\n".join(picture(png, name) for name, png in figures.items() if name.startswith("slices_"))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(results.cases)} {f'{results.case_list} ' if results.case_list else ''}"
        f"case{'s' if len(results.cases) > 1 else ''}; "
        f"class{'es' if len(results.classes) > 1 else ''}: "
        f"{escape(', '.join(results.classes))}.{escape(tolerance)}</p>",
        *([f"<p><strong>{VALIDATION_NOTE}</strong></p>"] if results.case_list == "validation" else []),
        *failures(results),
        "<h2>Summary</h2>",
        summary_table(results),
        f'<p class="note">{escape(SUMMARY_NOTE)}</p>',
        "<h2>Distribution</h2>",
        picture(figures["distribution"], "distribution of every metric over the cases"),
        "<h2>Worst, median and best case</h2>",
        slices,
        picture(figures["surfaces"], "surfaces of reference and prediction"),
        "<h2>Cases</h2>",
        f'<p class="note">{escape(CASE_NOTE)}</p>',
        case_table(results),
    ]
    return page(title, parts)


def page(title: str, parts: Iterable[str]) -> str:
    """A whole HTML page in the style of the reports, from pieces of its body."""
    body = "\n".join(parts)
    head = f'<meta charset="utf-8">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def main(
    output_dir: str,
    dataset_dir: str,
    path: str | None = None,
    title: str = "Evaluation",
    regions: Sequence[Sequence[int]] | None = None,
    ignore_value: int | None = None,
) -> None:
    """Writes the report of an evaluation that has finished.

    Args:
        output_dir: of the evaluation.
        dataset_dir: of the data set that was evaluated.
        path: of the HTML file; <output_dir>/report.html by default.
        title: heading.
        regions: as in the config, for overlapping regions.
        ignore_value: as in the config, of voxels that nobody annotated; they are drawn as an area.
    """
    results = EvaluationResults(output_dir, dataset_dir, regions=regions, ignore_value=ignore_value)
    file = Path(path) if path else results.output_dir / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(html_report(results, draw_figures(results), title=str(title)), encoding="utf-8")
    print(file)


if __name__ == "__main__":
    run_command(main)
