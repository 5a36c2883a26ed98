"""Curves: the training log as a figure, one panel for each kind of quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from scripts.pictures.panels import new_figure

WEIGHT, NORM = "_weight", "_gradient_norm"
BEFORE_TERMS = ("iteration", "seconds", "learning_rate", "loss", "gradient_norm")
Rows = Sequence[Mapping[str, str]]


def column(rows: Rows, name: str) -> np.ndarray:
    """The values of a column, NaN where it is empty."""
    return np.array([float(row[name]) if row.get(name) else np.nan for row in rows])


def panels_of(rows: Rows) -> dict[str, list[str]]:
    """Title -> columns of training_log.csv that are drawn together; columns without a value are left out."""
    names = [name for name in rows[0] if name not in BEFORE_TERMS and any(row.get(name) for row in rows)]
    weights = [name for name in names if name.endswith(WEIGHT)]
    norms = [name for name in names if name.endswith(NORM)]
    terms = [name for name in names if name + WEIGHT in weights]
    others = [name for name in names if name not in (*weights, *norms, *terms)]
    panels = {"loss": ["loss"], "terms before weighting": terms, "weights of the terms": weights}
    panels |= {"gradient norms of the terms": norms, "measured": others, "learning rate": ["learning_rate"]}
    if any(row.get("gradient_norm") for row in rows):
        panels["gradient norm"] = ["gradient_norm"]
    return {title: columns for title, columns in panels.items() if columns}


def curves_figure(log: Rows, validations: Rows = ()) -> Figure:
    """Draws a run's curves over the iterations.

    Terms and gradient norms are on a logarithmic axis, where values of zero or below are not seen.

    Args:
        log: rows of training_log.csv, at least one.
        validations: rows of validation_log.csv; may be empty.
    """
    panels = [(title, log, columns) for title, columns in panels_of(log).items()]
    if validations:
        metrics = [name for name in validations[0] if name not in ("iteration", "epoch")]
        panels.insert(1, ("validation", validations, metrics))
    rows = (len(panels) + 1) // 2
    figure = new_figure(13, 3.2 * rows)
    for axes, (title, table, columns) in zip(figure.subplots(rows, 2, squeeze=False).flat, panels):
        marker = "." if len(table) < 50 else None
        iterations = column(table, "iteration")
        for number, name in enumerate(columns):
            label = name.removesuffix(WEIGHT).removesuffix(NORM)
            style = ("solid", "dashed", "dotted")[number // 10 % 3]
            values = column(table, name)
            there = ~np.isnan(values)  # what is measured now and then is joined all the same
            axes.plot(iterations[there], values[there], label=label, marker=marker, linewidth=1.2, linestyle=style)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if title.startswith(("terms", "gradient")):
            axes.set_yscale("log", nonpositive="mask")
        if columns != [title.replace(" ", "_")]:
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    return figure
