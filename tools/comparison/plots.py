"""Plots: Dice against the number of labeled cases, and the differences to the baseline case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.pictures.panels import new_figure, write_png

from .collect import ALL_CLASSES
from .paired import case_differences

# Okabe & Ito's colours, which those who see red and green alike tell apart too; markers say it once more.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP*Xd<>h"


def style(index: int) -> dict[str, Any]:
    """Colour and marker of the method at ``index``; the pair repeats after 84 methods."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def overall(classes: Sequence[str]) -> str:
    """The class that stands for all: their mean, or the only one."""
    return ALL_CLASSES if ALL_CLASSES in classes else classes[0]


def plot_dice(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws mean Dice against the number of labeled cases, one line per method.

    Args:
        rows: of comparison.csv. Bars are the standard deviation between the seeds' means, where there are several.
        path: PNG file to write.
    """
    name = overall([row["class"] for row in rows])
    rows = [row for row in rows if row["metric"] == "dice" and row["class"] == name]
    labels = sorted({row["num_labeled"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = new_figure(1.3 * len(labels) + 4.5, 4)
    axes = figure.subplots()
    for i, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        # Side by side around the number of labels, so that the bars of several methods stay apart.
        places = [labels.index(row["num_labeled"]) + 0.4 * ((i + 0.5) / len(methods) - 0.5) for row in own]
        bars = [row["std_seeds"] or 0 for row in own]
        axes.errorbar(places, [row["mean"] for row in own], bars, **style(i), capsize=3, linewidth=1.2, label=method)
    axes.set_xticks(range(len(labels)), [str(n) for n in labels])
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xlabel("labeled cases")
    axes.set_ylabel("Dice" + (", mean over the classes" if name == ALL_CLASSES else ""))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    write_png(figure, path)


def plot_differences(collected: Mapping[tuple[str, int], Mapping[int, Any]], baseline: str, path: Path) -> None:
    """Draws for every method the difference in Dice to the baseline of each case, and their mean as a line.

    Nothing is written where no method shares a seed and a number of labels with the baseline.

    Args:
        collected: (method, num_labeled) -> seed -> class -> metric -> case -> value.
        baseline: name of the method.
        path: PNG file to write.
    """
    columns: dict[str, list[float]] = {}
    for (method, labels), seeds in collected.items():
        reference = collected.get((baseline, labels), {})
        if method == baseline:
            continue
        name = overall(list(next(iter(seeds.values()))))
        dice = [{seed: values[name]["dice"] for seed, values in group.items()} for group in (seeds, reference)]
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
