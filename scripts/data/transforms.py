"""Transforms: MONAI dictionary transforms between label values and foreground channels."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import nn

from .label_coding import LabelCoding


class _LabelCodingd(MapTransform):
    """Applies one direction of a label coding, which works on batches, to single cases."""

    def __init__(self, keys: KeysCollection, label_coding: LabelCoding, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_coding = label_coding

    def convert(self, batch: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.convert(result[key][None])[0]
        return result


class EncodeLabelsd(_LabelCodingd):
    """Label values (1, H, W, D) to foreground channels (C, H, W, D), float32, see :class:`LabelCoding`."""

    def convert(self, batch: torch.Tensor) -> torch.Tensor:
        return self.label_coding.encode(batch)


class DecodeProbabilitiesd(_LabelCodingd):
    """Foreground probabilities (C, H, W, D) to label values, uint8, see :class:`LabelCoding`."""

    def convert(self, batch: torch.Tensor) -> torch.Tensor:
        return self.label_coding.decode(batch)


class PreGeneratedMapd(MapTransform):
    """Adds "distance", the signed distance map (C, H, W, D) of the whole volume, made before cropping (Table 10).

    Args:
        keys: of the label values (1, H, W, D); cases without it are left as they are.
        label_coding: see :class:`LabelCoding`.
        segmentation_to_distance: the operator; see :class:`~scripts.distance.SegmentationToDistance`.
    """

    def __init__(self, keys: KeysCollection, label_coding: LabelCoding, segmentation_to_distance: nn.Module) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.label_coding = label_coding
        # A copy on the CPU, where the volumes are cached; the objective's own may be on a GPU.
        self.segmentation_to_distance = copy.deepcopy(segmentation_to_distance).cpu()

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            with torch.no_grad():
                result["distance"] = self.segmentation_to_distance(self.label_coding.encode(result[key][None]))[0]
        return result
