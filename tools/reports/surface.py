"""Surface: renders masks as shaded surfaces, seen from the front, with numpy and scipy."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from scipy import ndimage

from scripts.data import foreground_box
from scripts.data.colours import class_colours

BACKGROUND = 1.0
# The light comes from above the viewer's left shoulder; in view axes (right, up, away from the viewer).
LIGHT = np.array([-0.45, 0.6, -0.66])
AMBIENT = 0.35


def view_axes(azimuth: float, elevation: float) -> np.ndarray:
    """Axes of the view in the patient's (right, anterior, superior).

    Args:
        azimuth: degrees that the viewer, in front of the patient, has gone towards the patient's left.
        elevation: degrees that the viewer is above.

    Returns:
        (3, 3), float: rows are the directions to the right of the picture, up, and away from the viewer.
    """
    a, e = np.radians((azimuth, elevation))
    away = np.array([np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), -np.sin(e)])
    right = np.cross(away, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(right, away), away])


def render_surfaces(
    masks: np.ndarray,
    spacing: Sequence[float],
    *,
    box: tuple[Sequence[int], Sequence[int]] | None = None,
    pixels: int = 200,
    azimuth: float = 30.0,
    elevation: float = 20.0,
) -> np.ndarray:
    """Draws each mask's surface in its colour by parallel projection.

    The masks are smoothed by half a voxel and seen along rays through a rotated copy of the volume; the first sample
    above 1/2 is the surface, the gradient there its normal. The nearest of several masks covers the others.

    Args:
        masks: (C, H, W, D), bool, axes towards the patient's right, anterior and superior.
        spacing: of a voxel, mm.
        box: first and last index of the part to show along H, W and D, so that two calls show the same part;
            by default that around all masks.
        pixels: width and height of the picture.
        azimuth: where the viewer stands, see :func:`view_axes`.
        elevation: likewise.

    Returns:
        (pixels, pixels, 3), float, [0, 1], first row at the top; white where there is no surface.
    """
    picture = np.full((pixels, pixels, 3), BACKGROUND)
    box = box or bounding_box(masks)
    if box is None:
        return picture
    steps = np.asarray(spacing, dtype=float)
    low, high = (np.asarray(edge, dtype=float) * steps for edge in box)
    centre = (low + high) / 2
    axes = view_axes(azimuth, elevation)
    corners = np.array(list(itertools.product(*zip(low - steps, high + steps)))) - centre
    reach = np.abs(corners @ axes.T).max(axis=0)  # mm, along the axes of the view
    step = 2 * max(reach[:2]) / pixels
    shape = (pixels, pixels, int(np.ceil(2 * reach[2] / step)))
    # From sample (column, row, depth) to voxel: position in mm = centre + axes^T (sample - middle) step.
    matrix = (axes.T * step) / steps[:, None]
    offset = centre / steps - matrix @ ((np.array(shape) - 1) / 2)
    nearest = np.full((pixels, pixels), np.inf)
    for mask, colour in zip(masks, map(to_rgb, class_colours(len(masks)))):
        part = tuple(slice(max(0, a - 1), b + 2) for a, b in zip(*box))
        solid = np.pad(mask[part], 1).astype(np.float32)
        # Single voxels and thin walls, which the filter would take below 1/2, stay.
        smooth = np.maximum(ndimage.gaussian_filter(solid, 0.5), 0.8 * solid)
        shift = offset + 1 - [edge.start for edge in part]
        samples = ndimage.affine_transform(smooth, matrix, shift, shape, order=1)
        depth, normal = _first_hit(samples)
        visible = depth < nearest
        nearest[visible] = depth[visible]
        light = AMBIENT + (1 - AMBIENT) * np.clip(normal @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
        picture[visible] = (light[..., None] * colour)[visible]
    # Columns go right and rows up; a picture's rows go down.
    return picture.transpose(1, 0, 2)[::-1]


def bounding_box(masks: np.ndarray) -> tuple[list[int], list[int]] | None:
    """First and last index along the three axes of all ``masks`` (C, H, W, D), bool; None if they are empty."""
    box = foreground_box(np.asarray(masks.any(axis=0)))
    return ([edge.start for edge in box], [edge.stop - 1 for edge in box]) if box else None


def _first_hit(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays along the last axis of (X, Y, Z) first exceed 1/2: depth (X, Y), else inf, and normal (X, Y, 3)."""
    inside = samples > 0.5
    first = inside.argmax(axis=2)
    hit = inside.any(axis=2)
    x, y = np.indices(first.shape)
    before = np.clip(first - 1, 0, None)
    a, b = samples[x, y, before], samples[x, y, first]
    part = np.divide(b - 0.5, b - a, out=np.zeros_like(b), where=hit & (b > a))
    depth = np.where(hit, first - part, np.inf)
    # A wider gradient than the voxel's own steps, so that these do not show as facets.
    softened = np.pad(ndimage.gaussian_filter(samples, 1.5, truncate=2.0), 1)
    at = (x + 1, y + 1, first + 1)
    steps = np.eye(3, dtype=int)
    normal = np.stack(
        [softened[tuple(map(np.subtract, at, step))] - softened[tuple(map(np.add, at, step))] for step in steps],
        axis=-1,
    )
    return depth, normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
