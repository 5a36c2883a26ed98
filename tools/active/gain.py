"""Gain: what further labels should bring, from runs with different numbers of labels.

python -m tools.active.gain --runs "[outputs/two,outputs/four,outputs/eight]" --further 10
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from scripts.data import DataError
from tools.command_line import run_command
from tools.reports.pseudo_labels import read_run
from tools.tables import read_csv

FEWEST = 3  # different numbers of labels, as many as the curve has parameters
FARTHEST = 2  # times the most labels of a run, beyond which nothing is said
RESAMPLES = 500
# Number of labels -> its runs -> case -> Dice.
Runs = Mapping[int, Sequence[Mapping[str, float]]]


class Gain(NamedTuple):
    """Dice now, by the curve; what the further labels add, with the bounds of its 95 % interval."""

    now: float
    gain: float
    low: float
    high: float


def curve(labels: np.ndarray, ceiling: float, drop: float, power: float) -> np.ndarray:
    """Dice for numbers of labels: ceiling - drop · labels^(-power)."""
    return ceiling - drop * np.asarray(labels, float) ** -power


def expected_gain(runs: Runs, further: int, *, seed: int = 0) -> Gain:
    """The power law through the mean Dice of every number of labels, and its bootstrap over cases and runs.

    Args:
        runs: with the same cases, of which those that all have are taken.
        further: labels beyond the most that a run has.
        seed: of the bootstrap.

    Raises:
        DataError: when it cannot be known: fewer than three numbers of labels, no common case, too far beyond the
            runs, or a curve that does not rise.
    """
    counts = np.array(sorted(runs))
    if len(counts) < FEWEST:
        raise DataError(
            f"the gain cannot be known: the runs have {len(counts)} different numbers of labels "
            f"({', '.join(map(str, counts))}), and a learning curve needs {FEWEST}: train with fewer labels as well."
        )
    if further < 1 or counts[-1] + further > FARTHEST * counts[-1]:
        raise DataError(
            f"the gain of {further} labels cannot be known from runs with at most {counts[-1]}: ask for 1 to "
            f"{(FARTHEST - 1) * counts[-1]} further ones."
        )
    cases = sorted(set.intersection(*(set(run) for of_count in runs.values() for run in of_count)))
    if len(cases) < 2:
        raise DataError(f"the runs have {len(cases)} test cases in common: evaluate all on the same list.")
    tables = [np.array([[run[case] for case in cases] for run in runs[count]]) for count in counts]
    means = np.array([table.mean() for table in tables])
    if np.polyfit(np.log(counts), means, 1)[0] <= 0:
        raise DataError(
            f"the gain cannot be known: Dice does not rise with the labels ({_listed(counts, means)}). More labels may "
            "still help; longer training or another method may come first."
        )
    whole = _fitted(counts, means)
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(len(cases), size=len(cases))
        drawn = [table[rng.integers(len(table), size=len(table))][:, chosen].mean() for table in tables]
        gains.append(_step(_fitted(counts, np.array(drawn)), counts[-1], further))
    low, high = np.percentile(gains, (2.5, 97.5))
    return Gain(float(curve(counts[-1], *whole)), _step(whole, counts[-1], further), float(low), float(high))


def _fitted(counts: np.ndarray, means: np.ndarray) -> np.ndarray:
    top = float(means.max())
    start = (min(1.0, top + 0.02), max(1e-3, min(1.0, top - float(means.min()) + 0.02)), 0.5)
    bounds = ([min(top, 1 - 1e-6), 0, 0.05], [1, 5, 3])
    start = tuple(np.clip(start, *bounds))
    with warnings.catch_warnings():  # the covariance is not used
        warnings.simplefilter("ignore", OptimizeWarning)
        return curve_fit(curve, counts, means, p0=start, bounds=bounds, max_nfev=5000)[0]


def _step(parameters: np.ndarray, most: int, further: int) -> float:
    before, after = curve(np.array([most, most + further]), *parameters)
    return float(after - before)


def _listed(counts: Sequence[int] | np.ndarray, means: np.ndarray) -> str:
    return ", ".join(f"{count} labels {mean:.3f}" for count, mean in zip(counts, means))


def read_runs(folders: Sequence[str]) -> dict[int, list[dict[str, float]]]:
    """The Dice of every case, mean over its classes, of evaluated runs by their number of labels.

    Raises:
        DataError: when a run has no run.json or no metrics.csv.
    """
    found: dict[int, list[dict[str, float]]] = defaultdict(list)
    for folder in folders:
        count = int(read_run(folder).get_parsed_content("num_labeled"))
        path = Path(folder) / "metrics.csv"
        if not path.is_file():
            raise DataError(f"{path} does not exist: evaluate the run (python -m scripts evaluate --run {folder}).")
        values: dict[str, list[float]] = defaultdict(list)
        for row in read_csv(path):
            if row["dice"] not in ("", "nan"):
                values[row["case"]].append(float(row["dice"]))
        found[count].append({case: float(np.mean(of_case)) for case, of_case in values.items()})
    return found


def gain(runs: Sequence[str], further: int = 10) -> str:
    """Says what further labels should bring, from evaluated runs with different numbers of labels.

    Args:
        runs: output_dir of at least three trainings that differ in num_labeled and are evaluated on the same cases;
            several of one number (other draws, seeds) make the interval honest.
        further: number of labels beyond the most that a run has.

    Raises:
        DataError: when it cannot be known, with the reason.
    """
    found = read_runs(runs)
    result: Any = expected_gain(found, further)
    counts = sorted(found)
    means = np.array([np.mean([np.mean(list(run.values())) for run in found[count]]) for count in counts])
    lines = [
        _listed(counts, means),
        f"{further} labels more, {counts[-1] + further} in all: Dice {result.gain:+.3f} "
        f"(95 % interval {result.low:+.3f} to {result.high:+.3f}), from {result.now:.3f} by the curve.",
    ]
    if result.low < 0.001:
        lines.append("This cannot be told from no gain.")
    if any(len(of_count) == 1 for of_count in found.values()):
        lines.append(
            "Some numbers of labels have one run: the interval leaves out what other labeled cases would have changed."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(gain)
