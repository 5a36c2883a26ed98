"""Orientation: brings a label into its image's axes by the headers, and checks by the voxels whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage

from scripts.data import foreground_box

FLIPS = tuple(product((False, True), repeat=3))  # of the three axes; none first
SHELL = 3  # voxels


def to_axes_of(label: np.ndarray, label_affine: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``label`` (H, W, D) and its affine (4, 4) with axes permuted and flipped as those of ``affine`` (4, 4), mm.

    Nothing is resampled: every voxel keeps its position in space.
    """
    change = ornt_transform(io_orientation(label_affine), io_orientation(affine))
    return apply_orientation(label, change), label_affine @ inv_ornt_aff(change, label.shape)


def flip(label: np.ndarray, axes: Sequence[bool]) -> np.ndarray:
    """``label`` (H, W, D) mirrored along every axis for which ``axes`` is true."""
    return np.flip(label, tuple(axis for axis, mirrored in enumerate(axes) if mirrored))


def contrast(image: np.ndarray, label: np.ndarray) -> float:
    """How much an organ differs from its surroundings where ``label`` says that it is.

    d' = |mean inside - mean of the shell| / sqrt((variance inside + variance of the shell) / 2), the shell being the
    ``SHELL`` voxels around the label. It is large where the label's surface follows an edge of the image, and near 0
    where a mirrored label cuts through whatever lies there.

    Args:
        image: (H, W, D), clipped to the intensities that matter.
        label: (H, W, D), 0 outside.

    Returns:
        d', at least 0; 0 where the label or its shell is empty.
    """
    inside = label > 0
    box = foreground_box(inside)
    if box is None:
        return 0.0
    around = tuple(slice(max(0, edge.start - SHELL), edge.stop + SHELL) for edge in box)
    image, inside = image[around].astype(np.float64), inside[around]
    shell = ndimage.binary_dilation(inside, iterations=SHELL) & ~inside
    if not shell.any():
        return 0.0
    spread = np.sqrt((image[inside].var() + image[shell].var()) / 2)
    return float(abs(image[inside].mean() - image[shell].mean()) / max(spread, 1e-6))


def contrasts(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """:func:`contrast` of ``label`` under each of ``FLIPS``: (8,), float64."""
    return np.array([contrast(image, flip(label, axes)) for axes in FLIPS])
