"""Segmentation metrics: overlap and surface distances of two binary masks, as the papers' tables define them."""

from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import convert_to_numpy
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from scripts.data import foreground_box
from scripts.errors import UserError

METRIC_NAMES = ("dice", "jaccard", "hd95_mm", "asd_mm", "hd95_voxel", "asd_voxel", "surface_dice")
# Those of which a higher value is the better one; the others are distances.
OVERLAPS = ("dice", "jaccard", "surface_dice")
# A distance may exceed the tolerance by this fraction: 3 x 0.3 mm is within 0.9 mm, whatever a header's float32 says.
ROUNDING = 1e-6


def segmentation_metrics(
    prediction: np.ndarray | torch.Tensor,
    reference: np.ndarray | torch.Tensor,
    *,
    spacing: Sequence[float],
    tolerance: float = 1.0,
    known: np.ndarray | torch.Tensor | None = None,
) -> dict[str, float]:
    """Compares one predicted mask with its reference.

    With P and R the foreground voxels, ∂ the voxels that a 6-connected erosion removes (foreground on the image
    border is surface too) and d(A, B) the set of distances from every voxel centre of A to the nearest one of B:

    - dice = 2 |P ∩ R| / (|P| + |R|) and jaccard = |P ∩ R| / |P ∪ R|, in [0, 1];
    - hd95 = 95th percentile, linearly interpolated, of d(∂P, ∂R) and d(∂R, ∂P) pooled into one set;
    - asd = mean of d(∂P, ∂R), the directed distance prediction → reference;
    - surface_dice = the fraction of d(∂P, ∂R) and d(∂R, ∂P), pooled and in mm, that is at most ``tolerance``: the
      normalised surface distance, with surface voxels counted instead of weighted by the area that they stand for.

    hd95 and asd are those of ``hd95`` and ``asd`` in medpy (https://github.com/loli/medpy, ``metric/binary.py``),
    the library behind the tables of the papers. They differ from ``monai.metrics.HausdorffDistanceMetric``, which
    takes the maximum of the two directed percentiles instead of pooling.

    Empty masks: if both are empty, dice, jaccard and surface_dice are 1 and all distances 0. If exactly one is empty,
    these are 0 and all distances NaN, since no distance to an absent surface exists.

    Partial references: voxels that are not `known` do not enter P and R in the overlap. ∂R are then the voxels that
    are surface whatever the unknown ones are, ∂P those of the whole prediction that lie on known voxels, and a
    distance to ∂R counts if nothing is nearer that may be surface: long distances are left out more often than short
    ones. A reference without known foreground is not compared: all values are NaN.

    Args:
        prediction: (H, W, D), bool, on any device.
        reference: (H, W, D), bool, the same shape.
        spacing: edge lengths of a voxel along H, W and D, in mm, positive.
        tolerance: distance in mm up to which two surfaces count as equal in surface_dice, for example what two
            readers differ by; below the smallest edge of a voxel only coinciding surface voxels count.
        known: (H, W, D), bool, where the reference is known; None for everywhere.

    Returns:
        The keys of ``METRIC_NAMES``; ``*_mm`` in mm, ``*_voxel`` with a spacing of 1 (the unit of the papers' tables).

    Raises:
        UserError: if the shapes differ or are not three-dimensional, if ``spacing`` is not three positive numbers, or
            if ``tolerance`` is not a positive number.
        TypeError: if a mask is not boolean.
    """
    p, r = (np.asarray(convert_to_numpy(mask)) for mask in (prediction, reference))
    spacing = _checked_spacing(p, r, spacing)
    k = None if known is None else np.asarray(convert_to_numpy(known))
    if k is None or k.all():
        k, found = None, p
        # Outside of the image and outside of the box are both background, so the surfaces stay the same.
        if p.any() or r.any():
            box = foreground_box(p | r)
            p, r, found = p[box], r[box], p[box]
    else:
        r, found = r & k, p & k
        if not r.any():
            return dict.fromkeys(METRIC_NAMES, float("nan"))
    volumes = int(found.sum()) + int(r.sum())
    if volumes == 0:
        return dict(zip(METRIC_NAMES, (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)))
    if not (found.any() and r.any()):
        return dict(zip(METRIC_NAMES, (0.0, 0.0) + (float("nan"),) * 4 + (0.0,)))
    intersection = int((p & r).sum())
    values = {"dice": 2 * intersection / volumes, "jaccard": intersection / (volumes - intersection)}
    predicted, true, doubtful = _surfaces(p, r, k)
    for unit, edges in (("mm", spacing), ("voxel", (1.0, 1.0, 1.0))):
        scaled = [np.argwhere(surface) * np.asarray(edges) for surface in (predicted, true)]
        # MONAI's get_surface_distance does the same and rounds to float32, which is 3e-6 off at 50 voxels.
        forth, back = (KDTree(scaled[1 - n]).query(scaled[n])[0] for n in (0, 1))
        if k is not None:
            nearest = KDTree(np.argwhere(doubtful) * np.asarray(edges)).query(scaled[0])[0]
            forth = forth[k[predicted] & (forth <= nearest)]
        both = np.concatenate((forth, back))
        values[f"hd95_{unit}"] = float(np.percentile(both, 95)) if len(both) else float("nan")
        values[f"asd_{unit}"] = float(forth.mean()) if len(forth) else float("nan")
        if unit == "mm":
            close = both <= checked_tolerance(tolerance) * (1 + ROUNDING)
            values["surface_dice"] = float(close.mean()) if len(both) else float("nan")
    return {name: values[name] for name in METRIC_NAMES}


def _surfaces(p: np.ndarray, r: np.ndarray, k: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """∂P, the known part of ∂R and, where R is known only on ``k``, what else may be surface of it; (H, W, D), bool."""
    predicted, true = (mask & ~binary_erosion(mask) for mask in (p, r))
    if k is None:
        return predicted, true, np.zeros_like(true)
    # Surface, if the unknown voxels were foreground; and voxels that are perhaps surface.
    certain = r & ~binary_erosion(r | ~k)
    perhaps = ~k | (true & ~certain)
    # The nearest of them to a known voxel has a neighbour that is none.
    return predicted, certain, perhaps & ~binary_erosion(perhaps, border_value=1)


def checked_tolerance(tolerance: float) -> float:
    """``tolerance``, mm, as a float; refuses what is no positive number."""
    if not 0 < float(tolerance) < float("inf"):
        raise UserError(f"surface_tolerance is {tolerance}; it is a distance in mm, above 0, such as 1.0.")
    return float(tolerance)


def _checked_spacing(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> tuple[float, ...]:
    """Refuses unusable arguments and returns ``spacing`` as three Python floats."""
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise UserError(
            f"prediction and reference must have the same shape (H, W, D), got {prediction.shape} and "
            f"{reference.shape}: pass one case and one class, on the grid of the reference."
        )
    if not prediction.dtype == reference.dtype == np.bool_:
        raise TypeError(f"masks must be boolean, got {prediction.dtype} and {reference.dtype}: select the class first.")
    values = tuple(float(value) for value in spacing)
    if len(values) != 3 or not all(0 < value < float("inf") for value in values):
        raise UserError(
            f"spacing must be three positive numbers in mm, got {values}: take them from the affine of the image."
        )
    return values
