"""Segmentation metrics: Dice, Jaccard, 95HD and ASD of one pair of binary masks, as the papers' tables define them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from monai.utils import convert_to_numpy

__all__ = ["METRIC_NAMES", "segmentation_metrics"]

METRIC_NAMES = ("dice", "jaccard", "hd95_mm", "asd_mm", "hd95_voxel", "asd_voxel")


def segmentation_metrics(
    prediction: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor, *, spacing: Sequence[float]
) -> dict[str, float]:
    """Compare one predicted mask with its reference.

    With P and R the foreground voxels, ∂ the voxels that a 6-connected erosion removes (foreground on the image
    border is surface too) and d(A, B) the set of distances from every voxel centre of A to the nearest one of B:

    - dice = 2 |P ∩ R| / (|P| + |R|) and jaccard = |P ∩ R| / |P ∪ R|, in [0, 1];
    - hd95 = 95th percentile, linearly interpolated, of d(∂P, ∂R) and d(∂R, ∂P) pooled into one set;
    - asd = mean of d(∂P, ∂R), the directed distance prediction → reference.

    These are the definitions of ``hd95`` and ``asd`` in medpy (https://github.com/loli/medpy, ``metric/binary.py``),
    the library behind the tables of the papers. They differ from ``monai.metrics.HausdorffDistanceMetric``, which
    takes the maximum of the two directed percentiles instead of pooling.

    Empty masks: if both are empty, dice and jaccard are 1 and all distances 0. If exactly one is empty, dice and
    jaccard are 0 and all distances NaN, since no distance to an absent surface exists.

    Args:
        prediction: (H, W, D), bool, on any device.
        reference: (H, W, D), bool, the same shape.
        spacing: edge lengths of a voxel along H, W and D, in mm, positive.

    Returns:
        The keys of `METRIC_NAMES`; ``*_mm`` in mm, ``*_voxel`` with a spacing of 1 (the unit of the papers' tables).

    Raises:
        ValueError: if the shapes differ or are not three-dimensional, or if `spacing` is not three positive numbers.
        TypeError: if a mask is not boolean.
    """
    prediction, reference = convert_to_numpy(prediction), convert_to_numpy(reference)
    spacing = _checked_spacing(prediction, reference, spacing)

    volumes = int(prediction.sum()) + int(reference.sum())
    if volumes == 0:
        return dict(zip(METRIC_NAMES, (1.0, 1.0, 0.0, 0.0, 0.0, 0.0)))
    if not (prediction.any() and reference.any()):
        return dict(zip(METRIC_NAMES, (0.0, 0.0) + (float("nan"),) * 4))

    # MONAI crops as well, but by way of copies of the whole volume: this makes a usual case three times faster.
    # Outside of the image and outside of the box are both background, so the surfaces stay the same.
    box = _bounding_box(prediction | reference)
    prediction, reference = prediction[box], reference[box]

    intersection = int((prediction & reference).sum())
    hd95_mm, asd_mm = _surface_metrics(prediction, reference, spacing)
    hd95_voxel, asd_voxel = _surface_metrics(prediction, reference, (1.0, 1.0, 1.0))
    return {
        "dice": 2 * intersection / volumes,
        "jaccard": intersection / (volumes - intersection),
        "hd95_mm": hd95_mm,
        "asd_mm": asd_mm,
        "hd95_voxel": hd95_voxel,
        "asd_voxel": asd_voxel,
    }


def _surface_metrics(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Return (hd95, asd) of two non-empty (H, W, D) bool masks, in the unit of `spacing`."""
    _, distances, _ = get_edge_surface_distance(prediction, reference, spacing=spacing, symmetric=True)
    # MONAI returns float32; the mean over some 1e5 of them is taken in double precision.
    to_reference, to_prediction = (convert_to_numpy(d).astype(np.float64) for d in distances)
    return float(np.percentile(np.concatenate((to_reference, to_prediction)), 95)), float(to_reference.mean())


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box around the foreground of a non-empty mask, one slice per axis."""
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(occupied[0], occupied[-1] + 1))
    return tuple(box)


def _checked_spacing(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> tuple[float, ...]:
    """Refuse unusable arguments and return `spacing` as three Python floats."""
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must have the same shape, got {prediction.shape} and {reference.shape}: "
            "bring the prediction back into the geometry of the reference first."
        )
    if prediction.ndim != 3:
        raise ValueError(
            f"prediction and reference must have the shape (H, W, D), got {prediction.shape}: "
            "pass one case and one class, without batch and channel axes."
        )
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != np.bool_:
            raise TypeError(f"{name} must be boolean, got {mask.dtype}: select the class first, e.g. {name} == 1.")
    values = tuple(float(value) for value in spacing)
    if len(values) != 3 or not all(0 < value < float("inf") for value in values):
        raise ValueError(
            f"spacing must be three positive numbers in mm, got {values}: take them from the affine of the image."
        )
    return values
