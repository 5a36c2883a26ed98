"""Reference map: the signed distance map that a labeled crop's distance head is trained towards."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


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
def reference_map(targets: dict[str, torch.Tensor], segmentation_to_distance: Any) -> ReferenceMap:
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
