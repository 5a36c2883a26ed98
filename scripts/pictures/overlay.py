"""Overlay figure: draws one axial slice with what both decoders, the distance map and their unanimity say about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .panels import (
    PANEL_WIDTH,
    REFERENCE,
    check_volumes,
    draw_contour,
    draw_image,
    grey_window,
    new_figure,
    slice_to_show,
    write_png,
)

PHI = {"colour": "#56B4E9", "style": "dashed", "words": "decoder Phi: light blue, dashed"}
PSI = {"colour": "#D55E00", "style": "dashdot", "words": "decoder Psi: red-orange, dash-dotted"}
ZERO = {"colour": "#000000", "style": "solid", "words": "zero level of the distance: black, solid"}
DISAGREEMENT = {"colour": "#CC79A7", "words": "not unanimous: pink area"}


def draw_distance(figure: Figure, axes: Axes, distance: np.ndarray, *, aspect: float) -> None:
    """Shows a slice of the signed ``distance`` (H, W), white at its zero level, with a colour bar from -1 to 1."""
    picture = axes.imshow(distance.T, cmap="PuOr", origin="lower", aspect=aspect, vmin=-1, vmax=1)
    draw_contour(axes, distance, level=0.0, line=ZERO)
    axes.set_title("distance map", fontsize=9)
    axes.set_axis_off()
    bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["-1 inside", "0", "1 outside"], fontsize=7)


def draw_legend(figure: Figure, *, with_reference: bool) -> None:
    """Names every colour in words below the panels."""
    lines: list[dict[str, Any]] = [REFERENCE, PHI, PSI, ZERO] if with_reference else [PHI, PSI, ZERO]
    handles: list[Artist] = []
    for s in lines:
        handles.append(Line2D([], [], color=s["colour"], linestyle=s["style"], label=s["words"], linewidth=2))
    handles.append(Patch(facecolor=DISAGREEMENT["colour"], label=DISAGREEMENT["words"]))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, handlelength=4)
    legend.get_frame().set_facecolor("#B8B8B8")  # yellow would be lost on white, black on black


def overlay_figure(
    image: np.ndarray,
    reference: np.ndarray | None,
    segmentation_phi: np.ndarray,
    segmentation_psi: np.ndarray,
    distance: np.ndarray,
    unanimity: np.ndarray,
    *,
    title: str,
    path: str | Path,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Path:
    """Draws six panels of the axial slice with the largest reference, or prediction where there is no reference.

    Args:
        image: (H, W, D), float, any range; shown between the 0.5th and 99.5th percentile of the slice.
        reference: (H, W, D), int, > 0 inside the object; None where there is none.
        segmentation_phi: (H, W, D), float, [0, 1], probability by decoder Phi; its contour is at 0.5.
        segmentation_psi: (H, W, D), the same by decoder Psi.
        distance: (H, W, D), float, [-1, 1], signed distance map, negative inside.
        unanimity: (H, W, D), bool, True where all four heads agree.
        title: heading, for example the name of the case.
        path: PNG file to write; its folder is made if missing.
        spacing: voxel size along the axes of the arrays, mm; only the ratio of the first two matters.

    Returns:
        ``path``.

    Raises:
        UserError: when an array is not (H, W, D), or when two differ in shape.
    """
    volumes = {
        "image": image,
        "reference": reference,
        "segmentation_phi": segmentation_phi,
        "segmentation_psi": segmentation_psi,
        "distance": distance,
        "unanimity": unanimity,
    }
    check_volumes(volumes)
    shown = (segmentation_phi + segmentation_psi) / 2 > 0.5 if reference is None else reference > 0
    index = slice_to_show(shown)
    plane = {name: volume[:, :, index] for name, volume in volumes.items() if volume is not None}
    aspect = spacing[1] / spacing[0]
    window = grey_window(plane["image"])

    height = PANEL_WIDTH * aspect * plane["image"].shape[1] / plane["image"].shape[0] + 1.0
    figure = new_figure(6 * PANEL_WIDTH + 0.7, height)
    figure.suptitle(f"{title}, slice {index} of {image.shape[2]}", fontsize=11)
    panels = figure.subplots(1, 6)
    names = ("image", "reference" if reference is not None else "no reference", "decoder Phi", "decoder Psi")
    for axes, name in zip(panels, (*names, "distance map", "unanimity")):
        if name != "distance map":
            draw_image(axes, plane["image"], aspect=aspect, window=window, title=name)
    if "reference" in plane:
        for axes in panels[1:4]:
            draw_contour(axes, plane["reference"] > 0, level=0.5, line=REFERENCE)
    draw_contour(panels[2], plane["segmentation_phi"], level=0.5, line=PHI)
    draw_contour(panels[3], plane["segmentation_psi"], level=0.5, line=PSI)
    draw_distance(figure, panels[4], plane["distance"], aspect=aspect)
    disagreement = np.zeros((*plane["unanimity"].T.shape, 4))  # RGBA
    disagreement[~plane["unanimity"].T.astype(bool)] = to_rgba(DISAGREEMENT["colour"], alpha=0.75)
    panels[5].imshow(disagreement, origin="lower", aspect=aspect)
    draw_legend(figure, with_reference=reference is not None)
    return write_png(figure, path)
