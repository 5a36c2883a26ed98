"""Components: keeps the largest connected part of every class and removes the rest."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage

from scripts.data import LabelCoding

# Voxels that share a face, an edge or a corner are connected.
NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


class LargestComponentd(MapTransform):
    """Sets all but the largest 26-connected component of each class to background; for organs that are one piece.

    MONAI's KeepLargestConnectedComponent does the same and needs scikit-image. Of components of equal size the first
    in the order of the array stays. Overlapping regions are treated one by one, so that nested ones may stop being so.

    Args:
        keys: of the decoded masks, (1, H, W, D) label values or, for overlapping regions, (C, H, W, D) of 0 and 1.
        label_coding: says which of the two they are, and C.
    """

    def __init__(self, keys: KeysCollection, label_coding: LabelCoding) -> None:
        super().__init__(keys)
        self.label_coding = label_coding

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = mask = result[key].clone()
            for c in range(self.label_coding.num_classes):
                channel, value = (0, c + 1) if self.label_coding.regions is None else (c, 1)
                removed = smaller_components((mask[channel] == value).cpu().numpy())
                mask[channel][torch.from_numpy(removed).to(mask.device)] = 0
        return result


def smaller_components(foreground: np.ndarray) -> np.ndarray:
    """What of ``foreground`` (H, W, D), bool, is not in its largest component, in the same form."""
    labels, count = ndimage.label(foreground, structure=NEIGHBOURS)
    if count < 2:
        return np.zeros_like(foreground)
    sizes = np.bincount(labels.ravel())
    return foreground & (labels != sizes[1:].argmax() + 1)
