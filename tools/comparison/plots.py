"""Plots: share of the gap and Dice by number of labeled cases, and the differences to the baseline case by case.

Each function writes a PNG file from the rows of comparison.csv or from the values that they summarise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.evaluation.summary import ALL_CLASSES
from scripts.pictures.panels import new_figure, write_png

from .headline import dice_rows, overall
from .paired import case_differences
from .plan import Plan

# Okabe & Ito's colours, which those who see red and green alike tell apart too; markers say it once more.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP*Xd<>h"


def style(index: int) -> dict[str, Any]:
    """Colour and marker of the method at ``index``; the pair repeats after 84 methods."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def plot_gap(rows: Sequence[dict[str, Any]], plan: Plan, path: Path) -> None:
    """Draws the share of the gap that each method closes, by number of labels; only numbers that leave room.

    Bars are the 95 % intervals. Nothing is written where no share is known.
    """
    rows = [row for row in dice_rows(rows) if row.get("gap_closed") is not None and row["method"] != plan.baseline]
    if not rows:
        path.unlink(missing_ok=True)
        return
    points = []
    for row in rows:
        share, low, high = (row[key] for key in ("gap_closed", "gap_low", "gap_high"))
        # An interval without bounds has no bar.
        points.append((row, 100 * share, [0, 0] if low is None else [100 * (share - low), 100 * (high - share)]))
    figure, axes = _by_labels(points)
    _line(axes, 0, plan.baseline)
    _line(axes, 100, plan.ceiling)
    # A wide interval of one method must not flatten all others.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -100), min(high, 200))
    axes.set_ylabel("share of the gap in Dice that is closed (%)")
    write_png(figure, path)


def plot_dice(rows: Sequence[dict[str, Any]], plan: Plan, path: Path) -> None:
    """Draws mean Dice by number of labels, with the ceiling as a line.

    Bars are the standard deviation between the runs' means, where there are several.
    """
    rows = dice_rows(rows)
    below = [row for row in rows if row["method"] != plan.ceiling]
    figure, axes = _by_labels([(row, row["mean"], [row["std_runs"] or 0] * 2) for row in below or rows])
    for row in rows if below else []:
        if row["method"] == plan.ceiling:
            _line(axes, row["mean"], plan.ceiling)
    axes.set_ylabel("Dice" + (", mean over the classes" if rows[0]["class"] == ALL_CLASSES else ""))
    write_png(figure, path)


def _line(axes: Axes, level: float, name: str | None) -> None:
    axes.axhline(level, color="black", linewidth=0.8, linestyle="--")
    axes.annotate(f" {name}", (axes.get_xlim()[0], level), fontsize=8, va="bottom")


def _by_labels(points: Sequence[tuple[dict[str, Any], float, Sequence[float]]]) -> tuple[Figure, Axes]:
    """A figure with one line per method over the numbers of labels, from (row, value, bars below and above it)."""
    labels = sorted({row["num_labeled"] for row, *_ in points})
    methods = list(dict.fromkeys(row["method"] for row, *_ in points))
    figure = new_figure(1.3 * len(labels) + 4.5, 4)
    axes = figure.subplots()
    for i, method in enumerate(methods):
        own = [point for point in points if point[0]["method"] == method]
        # Side by side around the number of labels, so that the bars of several methods stay apart.
        places = [labels.index(row["num_labeled"]) + 0.4 * ((i + 0.5) / len(methods) - 0.5) for row, *_ in own]
        bars = np.array([bars for *_, bars in own]).T
        axes.errorbar(places, [value for _, value, _ in own], bars, **style(i), capsize=3, linewidth=1.2, label=method)
    axes.set_xticks(range(len(labels)), [str(n) for n in labels])
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xlabel("labeled cases")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure, axes


def plot_differences(collected: Mapping[tuple[str, int], Mapping[Any, Any]], baseline: str, path: Path) -> None:
    """Draws for every method the difference in Dice to the baseline of each case, and their mean as a line.

    Nothing is written where no method shares a draw, a seed and a number of labels with the baseline.

    Args:
        collected: (method, num_labeled) -> (draw, seed) -> class -> metric -> case -> value.
        baseline: name of the method.
        path: of the file.
    """
    columns: dict[str, list[float]] = {}
    for (method, labels), runs in collected.items():
        reference = collected.get((baseline, labels), {})
        if method == baseline:
            continue
        name = overall(list(next(iter(runs.values()))))
        dice = [{run: values[name]["dice"] for run, values in group.items()} for group in (runs, reference)]
        differences = case_differences(*dice)
        if differences:
            columns[f"{method}\n{labels} labels"] = list(differences.values())
    if not columns:
        path.unlink(missing_ok=True)
        return
    figure = new_figure(1.0 * len(columns) + 2.5, 4)
    axes = figure.subplots()
    random = np.random.default_rng(0)
    for i, column in enumerate(columns.values()):
        places = i + random.uniform(-0.15, 0.15, len(column))
        axes.plot(places, column, "o", color=COLOURS[1], alpha=0.6, markersize=4)
        axes.plot([i - 0.3, i + 0.3], [np.mean(column)] * 2, color=COLOURS[2], linewidth=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(columns)), list(columns), fontsize=8)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylabel(f"Dice minus that of {baseline}, per case")
    axes.grid(axis="y", alpha=0.3)
    write_png(figure, path)
