"""Segmentation metrics: overlap and surface distances of two binary masks, as the papers' tables define them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges
from monai.utils import convert_to_numpy
from scipy.ndimage import binary_erosion, generate_binary_structure
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

    Partial references: voxels that are not `known` do not enter P and R in the overlap. A surface voxel of R is known
    if it would be one whatever the unknown voxels are; ∂R are these, and ∂P are those of the whole prediction that lie
    on known voxels. A distance to ∂R is known, and counts, if nothing unknown is nearer, neither a voxel of the mask
    nor one that is perhaps surface: long distances are thereby left out more often than short ones. A reference that is
    unknown in places and has no foreground elsewhere is not compared: all values are NaN.

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
    p: np.ndarray = convert_to_numpy(prediction)
    r: np.ndarray = convert_to_numpy(reference)
    spacing = _checked_spacing(p, r, spacing)
    tolerance = checked_tolerance(tolerance)
    k: np.ndarray | None = None if known is None else convert_to_numpy(known)
    if k is not None and not k.all():
        return _partial_metrics(p, r & k, k, spacing, tolerance)

    volumes = int(p.sum()) + int(r.sum())
    if volumes == 0:
        return dict(zip(METRIC_NAMES, (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)))
    if not (p.any() and r.any()):
        return dict(zip(METRIC_NAMES, (0.0, 0.0) + (float("nan"),) * 4 + (0.0,)))

    # Outside of the image and outside of the box are both background, so the surfaces stay the same.
    box = foreground_box(p | r)
    p, r = p[box], r[box]

    intersection = int((p & r).sum())
    predicted, true = (np.argwhere(edge) for edge in get_mask_edges(p, r, crop=False))
    mm = _surface_distances(predicted, true, spacing)
    voxel = _surface_distances(predicted, true, (1.0, 1.0, 1.0))
    return _named(intersection, volumes, mm, voxel, tolerance)


def _named(
    intersection: int,
    volumes: int,
    mm: tuple[np.ndarray, np.ndarray],
    voxel: tuple[np.ndarray, np.ndarray],
    tolerance: float,
) -> dict[str, float]:
    """Return the metrics from the voxels of both masks and of either, and d(∂P, ∂R) and d(∂R, ∂P) in mm and voxels."""
    nan = float("nan")
    both_mm, both_voxel = np.concatenate(mm), np.concatenate(voxel)
    return {
        "dice": 2 * intersection / volumes,
        "jaccard": intersection / (volumes - intersection),
        "hd95_mm": float(np.percentile(both_mm, 95)) if len(both_mm) else nan,
        "asd_mm": float(mm[0].mean()) if len(mm[0]) else nan,
        "hd95_voxel": float(np.percentile(both_voxel, 95)) if len(both_voxel) else nan,
        "asd_voxel": float(voxel[0].mean()) if len(voxel[0]) else nan,
        "surface_dice": float((both_mm <= tolerance * (1 + ROUNDING)).mean()) if len(both_mm) else nan,
    }


def _partial_metrics(
    p: np.ndarray, r: np.ndarray, k: np.ndarray, spacing: Sequence[float], tolerance: float
) -> dict[str, float]:
    """Return the metrics where the reference `r` is known only on `k`, of which it is a part."""
    nan = float("nan")
    if not r.any():
        return dict.fromkeys(METRIC_NAMES, nan)
    found = p & k
    intersection, volumes = int((p & r).sum()), int(found.sum()) + int(r.sum())
    if not found.any():
        return dict(zip(METRIC_NAMES, (0.0, 0.0) + (nan,) * 4 + (0.0,)))
    # Surface, if the unknown voxels were foreground; and voxels that are perhaps surface.
    faces = generate_binary_structure(3, 1)
    certain = r & ~binary_erosion(r | ~k, faces)
    perhaps = ~k | (r & ~binary_erosion(r, faces) & ~certain)
    predicted, true = np.argwhere(p & ~binary_erosion(p, faces)), np.argwhere(certain)
    if not len(true):
        return _named(intersection, volumes, (np.empty(0),) * 2, (np.empty(0),) * 2, tolerance)
    on_known = k[tuple(predicted.T)]
    # The nearest of them to a known voxel has a neighbour that is none.
    perhaps &= ~binary_erosion(perhaps, faces, border_value=1)
    distances = []
    for edges in (spacing, (1.0, 1.0, 1.0)):
        forth, back = _surface_distances(predicted, true, edges)
        unknown = KDTree(np.argwhere(perhaps) * np.asarray(edges)).query(predicted * np.asarray(edges))[0]
        distances.append((forth[on_known & (forth <= unknown)], back))
    return _named(intersection, volumes, distances[0], distances[1], tolerance)


def checked_tolerance(tolerance: float) -> float:
    """``tolerance``, mm, as a float; refuses what is no positive number."""
    if not 0 < float(tolerance) < float("inf"):
        raise UserError(f"surface_tolerance is {tolerance}; it is a distance in mm, above 0, such as 1.0.")
    return float(tolerance)


def _surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """d(∂P, ∂R) and d(∂R, ∂P), (n,) and (m,), from the indices (n, 3) and (m, 3) of the surface voxels.

    MONAI's ``get_surface_distance`` does the same and rounds to float32, which is 3e-6 off at 50 voxels.
    """
    prediction, reference = prediction * np.asarray(spacing), reference * np.asarray(spacing)
    return KDTree(reference).query(prediction)[0], KDTree(prediction).query(reference)[0]


def _checked_spacing(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> tuple[float, ...]:
    """Refuses unusable arguments and returns ``spacing`` as three Python floats."""
    if prediction.shape != reference.shape:
        raise UserError(
            f"prediction and reference must have the same shape, got {prediction.shape} and {reference.shape}: "
            "bring the prediction back into the geometry of the reference first."
        )
    if prediction.ndim != 3:
        raise UserError(
            f"prediction and reference must have the shape (H, W, D), got {prediction.shape}: "
            "pass one case and one class, without batch and channel axes."
        )
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != np.bool_:
            raise TypeError(f"{name} must be boolean, got {mask.dtype}: select the class first, e.g. {name} == 1.")
    values = tuple(float(value) for value in spacing)
    if len(values) != 3 or not all(0 < value < float("inf") for value in values):
        raise UserError(
            f"spacing must be three positive numbers in mm, got {values}: take them from the affine of the image."
        )
    return values
