"""Cases: slices with contours and rendered surfaces of chosen cases, reference and prediction."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from scripts.data.colours import class_colours
from scripts.pictures import panels

from .results import CaseVolumes
from .surface import bounding_box, render_surfaces

# The two axes of the picture and the one that is cut, in (right, anterior, superior).
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
PREDICTION_STYLE: Literal["dashed"] = "dashed"
UNKNOWN = {"colour": "#4B0092", "words": "not annotated"}
MARGIN = 12.0  # mm around the object


def slices_figure(volumes: CaseVolumes, class_names: Sequence[str], *, title: str) -> Figure:
    """An axial, a coronal and a sagittal slice through the object, with the contours of reference and prediction.

    Each slice is the one with the largest reference, or prediction where the reference is empty, cut to the object's
    surroundings; the first axis of the plane (right or anterior) is to the right. Voxels of which the label does not
    know every class are a purple area.

    Args:
        volumes: of the case.
        class_names: C names, in the order of the channels.
        title: heading.
    """
    both = volumes.reference | volumes.prediction
    low, high = bounding_box(both) or ([0, 0, 0], [n - 1 for n in volumes.image.shape])
    margin = [int(np.ceil(MARGIN / step)) for step in volumes.spacing]
    part = tuple(slice(max(0, a - m), b + m + 1) for a, b, m in zip(low, high, margin))
    image, spacing = volumes.image[part], volumes.spacing
    reference, prediction = (mask[(slice(None), *part)] for mask in (volumes.reference, volumes.prediction))
    deciding = np.asarray((reference if reference.any() else prediction).any(axis=0))

    figure = panels.new_figure(3 * panels.PANEL_WIDTH + 0.5, panels.PANEL_WIDTH + 1.0)
    figure.suptitle(title, fontsize=11)
    for axes, (name, (across, up, cut)) in zip(figure.subplots(1, 3), PLANES.items()):
        index = panels.slice_to_show(np.moveaxis(deciding, cut, -1))
        plane = image.take(index, axis=cut)  # the two axes that are left are in the order (across, up)
        aspect = spacing[up] / spacing[across]
        where = f"{name}, slice {part[cut].start + index}"
        panels.draw_image(axes, plane, aspect=aspect, window=panels.grey_window(plane), title=where)
        for c, colour in enumerate(class_colours(len(class_names))):
            line = {"colour": colour, "style": PREDICTION_STYLE}
            panels.draw_contour(axes, reference[c].take(index, axis=cut), level=0.5, line=panels.REFERENCE)
            panels.draw_contour(axes, prediction[c].take(index, axis=cut), level=0.5, line=line)
        if volumes.known is not None:
            unknown = ~volumes.known[(slice(None), *part)].all(axis=0).take(index, axis=cut)
            area = np.zeros((*unknown.T.shape, 4))  # RGBA
            area[unknown.T] = to_rgba(UNKNOWN["colour"], alpha=0.4)
            axes.imshow(area, origin="lower", aspect=aspect)
    handles: list[Artist] = [Line2D([], [], color=panels.REFERENCE["colour"], linewidth=2, label="reference")]
    for name, colour in zip(class_names, class_colours(len(class_names))):
        handles.append(
            Line2D([], [], color=colour, linestyle=PREDICTION_STYLE, linewidth=2, label=f"prediction: {name}")
        )
    if volumes.known is not None:
        words = UNKNOWN["words"] + (", for one class at least" if len(class_names) > 1 else "")
        handles.append(Patch(facecolor=UNKNOWN["colour"], label=words))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, handlelength=4)
    legend.get_frame().set_facecolor("#B8B8B8")  # yellow would be lost on white
    return figure


def surfaces_figure(cases: Mapping[str, CaseVolumes], class_names: Sequence[str]) -> Figure:
    """Surfaces of reference (left) and prediction (right), one row per case, seen from the front.

    Where the label does not know a class, nothing of the prediction of that class is shown either.

    Args:
        cases: headings and volumes, in the order of the rows.
        class_names: C names, in the order of the channels.
    """
    figure = panels.new_figure(2 * panels.PANEL_WIDTH + 0.4, len(cases) * (panels.PANEL_WIDTH + 0.25) + 0.5)
    grid = figure.subplots(len(cases), 2, squeeze=False)
    for row, (title, volumes) in zip(grid, cases.items()):
        box = bounding_box(volumes.reference | volumes.prediction)
        for axes, name in zip(row, ("reference", "prediction")):
            masks = getattr(volumes, name)
            masks = masks if volumes.known is None else masks & volumes.known
            axes.imshow(render_surfaces(masks, volumes.spacing, box=box))
            axes.set_title(f"{title}\n{name}" if name == "reference" else name, fontsize=9, loc="left")
            axes.set_axis_off()
    colours = class_colours(len(class_names))
    handles = [Patch(facecolor=colour, label=name) for colour, name in zip(colours, class_names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    return figure
