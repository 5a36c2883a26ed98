"""Panels: the pieces that the figures share: colours, contours, the choice of a slice, and writing without pyplot."""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from scripts.errors import UserError

# Okabe & Ito's colours, which those who see red and green alike tell apart too; the line style says it once more.
REFERENCE = {"colour": "#F0E442", "style": "solid", "words": "reference: yellow, solid"}
DPI = 130
PANEL_WIDTH = 2.6  # inches


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches. With its own canvas: pyplot would keep it alive and switch the backend for everyone."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def write_png(figure: Figure, path: str | Path) -> Path:
    """Writes the figure to ``path``, whose folder is made if missing, and returns it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))
    return path


def grey_window(plane: np.ndarray) -> tuple[float, float]:
    """The 0.5th and 99.5th percentile of a slice: what to show as black and as white."""
    low, high = np.percentile(plane, (0.5, 99.5))
    return float(low), float(high)


def slice_to_show(mask: np.ndarray) -> int:
    """Index along the last axis of ``mask`` (H, W, D), bool, with most voxels; the middle one where it is empty."""
    areas = mask.sum(axis=(0, 1))
    return int(areas.argmax()) if areas.any() else mask.shape[2] // 2


def check_volumes(volumes: dict[str, np.ndarray | None]) -> None:
    """Raises ValueError unless all ``volumes`` that are given have three axes and the shape of the first of them."""
    given = {name: volume for name, volume in volumes.items() if volume is not None}
    wanted = next(iter(given.values())).shape
    for name, volume in given.items():
        if volume.ndim != 3 or volume.shape != wanted:
            raise UserError(
                f"{name} has the shape {volume.shape}; accepted is (H, W, D), the same for all, here {wanted}: "
                "take one case and one channel, without the batch and channel axes."
            )


def draw_image(axes: Axes, image: np.ndarray, *, aspect: float, window: tuple[float, float], title: str) -> None:
    """Shows a slice ``image`` (H, W) in grey, first axis to the right and second axis upwards."""
    axes.imshow(image.T, cmap="gray", origin="lower", aspect=aspect, vmin=window[0], vmax=window[1])
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_contour(axes: Axes, plane: np.ndarray, *, level: float, line: dict[str, str]) -> None:
    """Draws where ``plane`` (H, W) crosses ``level``, and nothing where it never does (older matplotlib would warn)."""
    plane = np.asarray(plane, dtype=float)
    if plane.min() < level < plane.max():
        lines = axes.contour(plane.T, levels=[level], colors=line["colour"], linestyles=line["style"], linewidths=1.4)
        lines.set_path_effects([Stroke(linewidth=2.6, foreground="black"), Normal()])  # seen on bright blood too
