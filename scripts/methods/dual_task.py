"""Dual task: base of the methods that compare a segmentation with a signed distance map of the same object."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from .losses import squared_error
from .objective import Objective, Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.distance import DistanceToSegmentation, SegmentationToDistance


class ReferenceMap(NamedTuple):
    """What the distance of a labeled crop should be, and where that is known.

    Args:
        map: (L, C, H, W, D), float32, [-1, 1], negative inside, without gradient.
        known: the same shape, bool or weights; None for everywhere.
        within: voxels of the min-max, (L, C, H, W, D), bool; None for the whole patch.
    """

    map: torch.Tensor
    known: torch.Tensor | None = None
    within: torch.Tensor | None = None


@torch.no_grad()
def reference_map(targets: Tensors, segmentation_to_distance: SegmentationToDistance) -> ReferenceMap:
    """The map that the data bring (of the whole volume, made before cropping), or else that of the label crop.

    Args:
        targets: "label", (L, C, H, W, D), 0 or 1; perhaps "distance", of the same shape, [-1, 1], NaN where unknown;
            and perhaps "known", of the same shape, bool or weights: where the label is known.
        segmentation_to_distance: see :class:`~scripts.distance.SegmentationToDistance`.
    """
    known = targets.get("known")
    if "distance" in targets:
        given = targets["distance"].float()
        return ReferenceMap(given) if known is None else ReferenceMap(given.nan_to_num(), given.isfinite() * known)
    if known is None:
        return ReferenceMap(segmentation_to_distance(targets["label"]))
    part = segmentation_to_distance.of_partial(targets["label"], known > 0)
    return ReferenceMap(part.map, part.known * known, part.known)


def distance_loss(
    distance: torch.Tensor, targets: Tensors, segmentation_to_distance: SegmentationToDistance
) -> torch.Tensor:
    """Mean squared error of the labeled crops' ``distance`` (B, C, H, W, D) against :func:`reference_map`."""
    expected = reference_map(targets, segmentation_to_distance)
    return squared_error(distance[: len(expected.map)], expected.map, expected.known)


class DualTaskObjective(Objective):
    """An objective with the transforms between the two tasks.

    Args:
        segmentation_to_distance: T_s2r; it also makes the reference maps R of the labels unless the data bring a
            "distance".
        distance_to_segmentation: T_r2s, the steep sigmoid.
        weights: see :class:`~scripts.methods.Objective`. A network that lacks a head needs the terms of that head
            switched off; DBiSL's objective needs all four.
    """

    def __init__(
        self,
        label_coding: LabelCoding,
        segmentation_to_distance: SegmentationToDistance,
        distance_to_segmentation: DistanceToSegmentation,
        weights: Weights = None,
    ) -> None:
        super().__init__(label_coding, weights)
        self.segmentation_to_distance = segmentation_to_distance
        self.distance_to_segmentation = distance_to_segmentation
