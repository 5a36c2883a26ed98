"""Dual task: base of the methods that compare a segmentation with a signed distance map of the same object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from .objective import Objective, Weight
from .reference_map import ReferenceMap, reference_map

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.distance import DistanceToSegmentation, SegmentationToDistance


class DualTaskObjective(Objective):
    """An objective with the transforms between the two tasks.

    Args:
        label_coding: see :class:`~scripts.methods.Objective`.
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
        weights: Mapping[str, Weight] | None = None,
    ) -> None:
        super().__init__(label_coding, weights)
        self.segmentation_to_distance = segmentation_to_distance
        self.distance_to_segmentation = distance_to_segmentation

    def reference_map(self, targets: dict[str, torch.Tensor]) -> ReferenceMap:
        """R of the labeled crops, (L, C, H, W, D), see :func:`~scripts.methods.reference_map.reference_map`."""
        return reference_map(targets, self.segmentation_to_distance)
