"""Summary: mean, standard deviation and bootstrap confidence interval of every metric over the cases of a test set."""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import bootstrap

from .metrics import METRIC_NAMES

ALL_CLASSES = "all"
SUMMARY_COLUMNS = ("class", "metric", "mean", "std", "ci95_low", "ci95_high", "n", "empty_predictions")
RESAMPLES = 9999


def summarize(rows: Sequence[Mapping]) -> list[dict]:
    """Summarises the rows of all cases by class and metric.

    A NaN distance (one of the two masks is empty) does not enter the mean. A model that misses an object would thereby
    look better, so that ``n`` and ``empty_predictions`` belong beside every mean distance.

    Args:
        rows: one per case and class, with ``case``, ``class``, the keys of ``METRIC_NAMES``, and ``empty_prediction``
            (bool: the prediction is empty while the reference is not).

    Returns:
        One dictionary per class and metric, with the keys :data:`SUMMARY_COLUMNS`: classes in the order in which they
        appear, then, if there are several, "all": every case is first averaged over its finite classes. ``mean`` is
        over the ``n`` finite values, None if there are none; ``std`` (ddof 1) and the bootstrap interval are None for
        fewer than two; ``empty_predictions`` counts cases with an empty prediction of the class ("all": of any class)
        while the reference was not empty.
    """
    classes = list(dict.fromkeys(row["class"] for row in rows))
    groups = [(name, [[row] for row in rows if row["class"] == name]) for name in classes]
    if len(classes) > 1:
        by_case: dict[str, list[Mapping]] = {}
        for row in rows:
            by_case.setdefault(row["case"], []).append(row)
        groups.append((ALL_CLASSES, list(by_case.values())))

    summary = []
    for name, cases in groups:
        empty = sum(any(row["empty_prediction"] for row in case) for case in cases)
        for metric in METRIC_NAMES:
            finite = [[row[metric] for row in case if math.isfinite(row[metric])] for case in cases]
            values = [statistics.fmean(of_case) for of_case in finite if of_case]
            mean = statistics.fmean(values) if values else None
            std = statistics.stdev(values) if len(values) > 1 else None
            interval = confidence_interval(values) or (None, None)
            summary.append(dict(zip(SUMMARY_COLUMNS, (name, metric, mean, std, *interval, len(values), empty))))
    return summary


def confidence_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the mean: what it would be for other cases of the same kind.

    It says nothing about another training, and with fewer than some twenty cases it is too narrow (docs/metrics.md).

    Args:
        values: one per case, finite.
        level: of confidence, in (0, 1).
        seed: of the drawing; the same values and seed give the same interval.

    Returns:
        (low, high), or None for fewer than two values.
    """
    if len(values) < 2:
        return None
    drawn = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def summary_table(summary: Sequence[Mapping]) -> str:
    """The summary as text: one line per class, and per metric the mean ± std and, in brackets, n."""
    lines = [["class", *METRIC_NAMES, "empty"]]
    for start in range(0, len(summary), len(METRIC_NAMES)):
        block = summary[start : start + len(METRIC_NAMES)]
        lines.append([block[0]["class"], *(_cell(line) for line in block), str(block[0]["empty_predictions"])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def _cell(line: Mapping) -> str:
    mean = "-" if line["mean"] is None else f"{line['mean']:.4f}"
    return mean + ("" if line["std"] is None else f" ± {line['std']:.4f}") + f" ({line['n']})"
