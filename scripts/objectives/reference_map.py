"""Reference map: the signed distance map that a labeled crop's distance head is trained towards."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def reference_map(targets: dict[str, torch.Tensor], segmentation_to_distance: nn.Module) -> torch.Tensor:
    """The map that the data bring (of the whole volume, made before cropping), or else that of the label crop.

    Args:
        targets: "label", (L, C, H, W, D), 0 or 1; and perhaps "distance", of the same shape, [-1, 1].
        segmentation_to_distance: see :class:`~scripts.distance.SegmentationToDistance`.

    Returns:
        (L, C, H, W, D), float32, [-1, 1], negative inside, without gradient.
    """
    if "distance" in targets:
        return targets["distance"].float()
    return segmentation_to_distance(targets["label"])
