"""Crops: one slice of training crops or of a volume with every head of the network, the unanimity, the pseudo-label."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from . import panels

PREDICTION = {"colour": "#56B4E9", "style": "dashed", "words": "segmentation at 1/2: light blue, dashed"}
ZERO = {"colour": "#000000", "style": "solid", "words": "zero level of the distance: black, solid"}
DISAGREEMENT = {"colour": "#CC79A7", "words": "not unanimous: pink area"}
UNBELIEVED = "#B8B8B8"


@dataclass(frozen=True)
class Crop:
    """One class of a crop or volume, as the network sees it; all arrays are (H, W, D).

    Args:
        title: what it is, to the left of its row.
        image: float, any range.
        reference: bool, the label; None for an unlabeled crop.
        probabilities: head -> float, [0, 1].
        distances: head -> float, [-1, 1], negative inside.
        unanimous: bool, where the pseudo-label is believed; None for methods without.
        pseudo_label: float, [0, 1]; None for methods without.
        aspect: size of a voxel along the second axis, relative to the first.
    """

    title: str
    image: np.ndarray
    reference: np.ndarray | None
    probabilities: dict[str, np.ndarray] = field(default_factory=dict)
    distances: dict[str, np.ndarray] = field(default_factory=dict)
    unanimous: np.ndarray | None = None
    pseudo_label: np.ndarray | None = None
    aspect: float = 1.0


def crops_figure(crops: Sequence[Crop], *, title: str) -> Figure:
    """A row for each crop, of the slice with the largest reference, or segmentation where there is no reference.

    Args:
        crops: with the same heads, at least one of them a probability.
        title: heading.

    Raises:
        UserError: when the arrays of a crop differ in shape.
    """
    count = 1 + len(crops[0].probabilities) + len(crops[0].distances) + 2 * (crops[0].unanimous is not None)
    height, width, _ = crops[0].image.shape
    row_height = panels.PANEL_WIDTH * crops[0].aspect * width / height + 0.4
    figure = panels.new_figure(count * panels.PANEL_WIDTH + 0.7, len(crops) * row_height + 0.8)
    figure.suptitle(title, fontsize=11)
    for crop, row in zip(crops, figure.subplots(len(crops), count, squeeze=False)):
        _draw_crop(figure, row, crop)
    words = [panels.REFERENCE["words"], PREDICTION["words"]] + [ZERO["words"]] * bool(crops[0].distances)
    if crops[0].unanimous is not None:
        words += [DISAGREEMENT["words"], "pseudo-label: black 0, white 1, grey not used"]
    figure.supxlabel("; ".join(words), fontsize=8)
    return figure


def _draw_crop(figure: Figure, row: Sequence[Axes], crop: Crop) -> None:
    volumes = {"image": crop.image, "reference": crop.reference, **crop.probabilities, **crop.distances}
    panels.check_volumes({**volumes, "unanimous": crop.unanimous, "pseudo_label": crop.pseudo_label})
    probability = np.mean(list(crop.probabilities.values()), axis=0)
    index = panels.slice_to_show(probability > 0.5 if crop.reference is None else crop.reference)
    image = crop.image[:, :, index]
    window = panels.grey_window(image)
    places = iter(row)

    def next_image(title: str) -> Axes:
        axes = next(places)
        panels.draw_image(axes, image, aspect=crop.aspect, window=window, title=title)
        return axes

    axes = next_image(f"{crop.title}, slice {index}")
    for name, head in [("", None), *crop.probabilities.items()]:
        axes = next_image(name) if name else axes
        if crop.reference is not None:
            panels.draw_contour(axes, crop.reference[:, :, index], level=0.5, line=panels.REFERENCE)
        if head is not None:
            panels.draw_contour(axes, head[:, :, index], level=0.5, line=PREDICTION)
    for name, distance in crop.distances.items():
        axes = next(places)
        draw_distance(figure, axes, distance[:, :, index], aspect=crop.aspect, title=name)
    if crop.unanimous is None or crop.pseudo_label is None:
        return
    unanimous = crop.unanimous[:, :, index].astype(bool)
    disagreement = np.zeros((*unanimous.T.shape, 4))  # RGBA
    disagreement[~unanimous.T] = to_rgba(DISAGREEMENT["colour"], alpha=0.75)
    share = crop.unanimous.mean()
    next_image(f"unanimous: {100 * share:.1f} % of the crop").imshow(disagreement, origin="lower", aspect=crop.aspect)
    axes = next(places)
    axes.set_facecolor(UNBELIEVED)
    believed = np.ma.masked_array(crop.pseudo_label[:, :, index], ~unanimous)
    axes.imshow(believed.T, cmap="gray", origin="lower", aspect=crop.aspect, vmin=0, vmax=1)
    axes.set_title("pseudo-label", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_distance(figure: Figure, axes: Axes, distance: np.ndarray, *, aspect: float, title: str) -> None:
    """Shows a slice of the signed ``distance`` (H, W), white at its zero level, with a colour bar from -1 to 1."""
    picture = axes.imshow(distance.T, cmap="PuOr", origin="lower", aspect=aspect, vmin=-1, vmax=1)
    panels.draw_contour(axes, distance, level=0.0, line=ZERO)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["-1 inside", "0", "1 outside"], fontsize=7)
