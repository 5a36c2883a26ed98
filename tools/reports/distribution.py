"""Distribution: every case's value of every metric as a point, over a box of the quartiles."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from scripts.data.colours import class_colours
from scripts.pictures.panels import new_figure


def distribution_figure(values: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """One panel per metric, one box per class: quartiles, whiskers to 1.5 times their distance, and all cases.

    Args:
        values: of every metric, of every class, of every case; NaN ones are counted in the label and not drawn.
    """
    columns = min(4, len(values))
    rows = math.ceil(len(values) / columns)
    figure = new_figure(2.4 * columns + 0.4, 2.5 * rows + 0.2)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(values) :]:
        axes.set_axis_off()
    spread = np.random.default_rng(0)  # sideways, so that equal values are seen
    for axes, (metric, classes) in zip(panels, values.items()):
        finite = {name: [value for value in column if math.isfinite(value)] for name, column in classes.items()}
        positions = list(range(1, len(classes) + 1))
        axes.boxplot(list(finite.values()), positions=positions, widths=0.6, showfliers=False, manage_ticks=False)
        for position, column, colour in zip(positions, finite.values(), class_colours(len(classes))):
            x = position + spread.uniform(-0.16, 0.16, len(column))
            axes.scatter(x, column, s=14, color=colour, edgecolors="black", linewidths=0.4, zorder=3)
        missing = {name: len(classes[name]) - len(column) for name, column in finite.items()}
        labels = [name + (f"\n({missing[name]} missing)" if missing[name] else "") for name in classes]
        axes.set_xticks(positions, labels, fontsize=8)
        axes.set_xlim(0.4, len(classes) + 0.6)
        axes.tick_params(axis="y", labelsize=8)
        axes.set_title(metric, fontsize=9)
        axes.grid(axis="y", linewidth=0.4)
    return figure
