"""Gap: the share of the gap to all labels that each arm of a study closes, as a table and a picture."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from tools.command_line import run_command
from tools.comparison.gap import gap_closed

# (draw, seed) -> case -> values
Scores = dict[tuple[int, int], dict[str, list[float]]]
MEASURES = ("dice", "hd95_mm", "asd_mm")


def gap(
    cases: str | list[str],
    num_labeled: int,
    *,
    baseline: str = "supervised",
    ceiling: str = "all_labels",
    all_labels: int = 160,
    case_list: str = "test",
    picture: str | None = None,
) -> None:
    """Prints a row for each arm: Dice by draw, difference to the baseline, p, share of the gap, surface distances.

    Args:
        cases: cases.csv of :mod:`benchmarks.dynamics`, or several; later ones add arms and draws.
        num_labeled: labels of the arms.
        baseline: arm at 0 %.
        ceiling: arm at 100 %, with ``all_labels`` labels.
        all_labels: labels of the ceiling.
        case_list: "test" or "validation".
        picture: PNG file to write, the shares with their 95 % intervals.
    """
    scores = read([cases] if isinstance(cases, str) else cases, case_list)
    arms = {arm: runs for (arm, labels), runs in scores.items() if labels == num_labeled}
    start, top = dice(arms[baseline]), dice(scores[ceiling, all_labels])
    shares = {}
    print("| arm | Dice by draw | mean | difference | p | better | share of the gap | 95HD (mm) | ASD (mm) |")
    print("|---|---|---|---|---|---|---|---|---|")
    for arm, runs in sorted(arms.items(), key=lambda item: np.mean(list(map(mean_dice, item[1].values())))):
        shared = sorted(set(runs) & set(arms[baseline]))
        names = sorted(set.intersection(*(set(runs[run]) for run in shared)))
        values, before = (
            np.array([[of[run][name][0] for name in names] for run in shared]).mean(0) for of in (runs, arms[baseline])
        )
        found = shares[arm] = gap_closed(dice(runs), start, top)
        difference = values - before
        columns = [arm, ", ".join(f"{mean_dice(runs[run]):.3f}" for run in sorted(runs)), f"{values.mean():.4f}"]
        if arm == baseline:
            columns += ["", "", "", "0"]
        else:
            error = difference.std(ddof=1) / len(names) ** 0.5
            columns += [f"{difference.mean():+.4f} +- {error:.4f}", f"{wilcoxon(difference).pvalue:.2g}"]
            columns += [f"{(difference > 0).sum()} of {len(names)}", share(found)]
        for measure in (1, 2):
            columns.append(f"{np.nanmean([[runs[run][name][measure] for name in names] for run in sorted(runs)]):.2f}")
        print("| " + " | ".join(columns) + " |")
    print(f"\n{ceiling} with {all_labels} labels: {np.mean([list(run.values()) for run in top.values()]):.4f}")
    if picture:
        draw({arm: found for arm, found in shares.items() if arm != baseline}, num_labeled, Path(picture))


def read(paths: list[str], case_list: str) -> dict[tuple[str, int], Scores]:
    """(arm, labels) -> runs; masks of other heads than the network's own output are arms of their own."""
    found: dict[tuple[str, int], dict] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in paths:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["list"] == case_list:
                    arm = row["arm"] if row["masks"] == "network" else f"{row['arm']}, {row['masks']}"
                    run = found[arm, int(row["num_labeled"])][int(row["draw"]), int(row["seed"])]
                    run[row["case"]].append([float(row[name] or "nan") for name in MEASURES])
    return {
        key: {
            run: {case: np.nanmean(values, axis=0).tolist() for case, values in of.items()} for run, of in runs.items()
        }
        for key, runs in found.items()
    }


def dice(runs: Scores) -> dict[tuple[int, int], dict[str, float]]:
    """(draw, seed) -> case -> Dice, mean over the classes."""
    return {run: {case: values[0] for case, values in of.items()} for run, of in runs.items()}


def mean_dice(run: dict[str, list[float]]) -> float:
    """Mean Dice of a run over its cases."""
    return float(np.mean([values[0] for values in run.values()]))


def share(found: dict[str, float | None]) -> str:
    """The share with its interval, as text."""
    if found["gap_closed"] is None:
        return "no room"
    low, high = found["gap_low"], found["gap_high"]
    interval = "" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f} %)"
    return f"{100 * found['gap_closed']:.0f} %{interval}"


def draw(shares: dict[str, dict[str, float | None]], num_labeled: int, path: Path) -> None:
    """A bar for each arm; whiskers are the 95 % intervals."""
    figure = Figure(figsize=(7, 0.5 + 0.4 * len(shares)), layout="constrained")
    axes = figure.subplots()
    for place, found in enumerate(shares.values()):
        if found["gap_closed"] is None:
            continue
        closed = 100 * found["gap_closed"]
        axes.barh(place, closed, color="#0072B2")
        if found["gap_low"] is not None and found["gap_high"] is not None:
            error = [[closed - 100 * found["gap_low"]], [100 * found["gap_high"] - closed]]
            axes.errorbar(closed, place, xerr=error, color="black", capsize=3)
    axes.set_yticks(range(len(shares)), [arm.replace("_", " ") for arm in shares])
    axes.set_xlabel(f"share of the gap to all labels that is closed, in Dice (%), {num_labeled} labels")
    axes.axvline(100, color="black", linewidth=0.8, linestyle="--")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run_command(gap)
