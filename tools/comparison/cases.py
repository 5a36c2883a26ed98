"""Cases: says which cases failed, and where the runs of a comparison were trained or evaluated on different ones."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.tables import read_csv

from .collect import failed_cases
from .plan import Run

# Names that a line lists before it counts the rest.
MOST_NAMED = 8


def failure_lines(runs: Sequence[Run]) -> list[str]:
    """One line of comparison.md per case that failed, with the runs and the reason of the first of them."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        for case, reason in failed_cases(run).items():
            found.setdefault(case, {})[run.name] = reason
    if not found:
        return []
    lines = [
        f"- {case}, in {'all runs' if len(reasons) == len(runs) else named(reasons)}: {next(iter(reasons.values()))}"
        for case, reasons in found.items()
    ]
    return ["**Failed cases**, which are in no figure of the run:", "", *lines, ""]


def data_lines(runs: Sequence[Run]) -> list[str]:
    """A paragraph of comparison.md for everything in which the finished runs do not have the same data."""
    lines = []
    for labels, draw in dict.fromkeys((run.num_labeled, run.draw) for run in runs):
        of_draw = [run for run in runs if (run.num_labeled, run.draw) == (labels, draw)]
        for name in ("labeled", "unlabeled"):
            groups = _grouped((run.name, _trained_on(run, name)) for run in of_draw)
            if len(groups) > 1:
                words = [[f"{cases} cases of digest {digest}" for cases, digest in data] for data in groups]
                parts = [f"{', then '.join(data)} in {named(of)}" for data, of in zip(words, groups.values())]
                lines += [
                    f"**Trained on different data** ({labels} labels, {name} cases): {'; '.join(parts)}. The "
                    "difference between such runs is not that of their methods alone.",
                    "",
                ]
    evaluated = {run.name: {row["case"] for row in read_csv(run.folder / "metrics.csv")} for run in runs}
    tried = _grouped((run.name, frozenset(evaluated[run.name] | failed_cases(run).keys())) for run in runs)
    if len(tried) > 1:
        every = frozenset().union(*tried)
        parts = []
        for cases, of in tried.items():
            absent = f" (without {named(sorted(every - cases))})" if every - cases else ""
            parts.append(f"{len(cases)} cases{absent} in {named(of)}")
        lines += [
            f"**Evaluated on different cases**: {'; '.join(parts)}. A mean is over the cases of its own runs, a "
            "difference over those that both have; `--evaluate_again` evaluates all on the present list.",
            "",
        ]
    return lines


def named(names: Iterable[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _trained_on(run: Run, name: str) -> tuple[tuple[int, str], ...] | None:
    """Number and digest of a list of training cases, from run.json; several where a continued run changed its data.

    None where it is not recorded, and for a list that is empty: labels only leave unlabeled cases out.
    """
    path = run.folder / "run.json"
    starts: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.is_file() else []
    data = [start["data"][name] for start in starts if name in start.get("data", {})]
    return tuple(dict.fromkeys((entry["cases"], entry["digest"]) for entry in data if entry["cases"])) or None


def _grouped(of_runs: Iterable[tuple[str, Any]]) -> dict[Any, list[str]]:
    """The names of the runs that have the same, by what they have; a run of which nothing is known is left out."""
    groups: dict[Any, list[str]] = {}
    for run, value in of_runs:
        if value is not None:
            groups.setdefault(value, []).append(run)
    return groups
