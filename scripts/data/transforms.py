"""Transforms: MONAI dictionary transforms between label values and foreground channels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from .label_coding import LabelCoding


class EncodeLabelsd(MapTransform):
    """Label values (1, H, W, D) to foreground channels (C, H, W, D), float32, see :class:`LabelCoding`."""

    def __init__(self, keys: KeysCollection, label_coding: LabelCoding, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_coding = label_coding

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.label_coding.encode(result[key][None])[0]
        return result


class DecodeProbabilitiesd(MapTransform):
    """Foreground probabilities (C, H, W, D) to label values, uint8, see :class:`LabelCoding`."""

    def __init__(self, keys: KeysCollection, label_coding: LabelCoding, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_coding = label_coding

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.label_coding.decode(result[key][None])[0]
        return result
