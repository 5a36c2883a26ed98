"""Decoding: what a mask says of a voxel: thresholds of the classes, and the label values of the original files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.data import DataError

LARGEST_VALUE = 65535


class Thresholdd(MapTransform):
    """Moves probabilities (C, H, W, D) so that 1/2, at which masks are decoded, is where a class's threshold was.

    p below the threshold t becomes p / 2t, above it 1/2 + (p - t) / 2(1 - t). Of several exclusive classes above their
    thresholds that one is taken which is furthest on the way from its threshold to 1.

    Args:
        keys: of the probabilities.
        threshold: t of every class, or of each a list; above 0 and below 1.
        num_classes: C.

    Raises:
        DataError: when a threshold is out of range, or they are not as many as there are classes.
    """

    def __init__(self, keys: KeysCollection, threshold: float | Sequence[float], num_classes: int) -> None:
        super().__init__(keys)
        values: list[Any] = list(threshold) if isinstance(threshold, (list, tuple)) else [threshold] * num_classes
        numbers = all(isinstance(value, (int, float)) and 0 < value < 1 for value in values)
        if len(values) != num_classes or not numbers:
            raise DataError(
                f"threshold is {threshold!r}; it is a number above 0 and below 1, or a list of {num_classes}, one for "
                "each class."
            )
        self.thresholds = values

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            for c, t in enumerate(self.thresholds):
                if t == 0.5:
                    continue
                if result[key] is data[key]:
                    result[key] = data[key].clone()
                p = result[key][c]
                result[key][c] = torch.where(p > t, 0.5 + (p - t) / (2 * (1 - t)), p / (2 * t))
        return result


class OriginalValuesd(MapTransform):
    """Copies masks to another key, with the label values of the files that the training's labels were renumbered from.

    Args:
        keys: of (1, H, W, D) label values 1, ..., C, uint8.
        target: key of the copy, uint8 or, for values above 255, int32.
        label_values: of the C classes, 1 to 65535; None to keep what masks have.
        num_classes: C.
        regions: of overlapping regions, whose masks are 0 and 1 and cannot have other values.

    Raises:
        DataError: when the values are not C different whole numbers, or ``regions`` are given too.
    """

    def __init__(
        self,
        keys: KeysCollection,
        target: str,
        label_values: Sequence[int] | None,
        num_classes: int,
        regions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(keys)
        self.target = target
        self.label_values = None if label_values is None else list(label_values)
        if self.label_values is None:
            return
        valid = all(type(value) is int and 1 <= value <= LARGEST_VALUE for value in self.label_values)
        different = len(set(self.label_values)) == len(self.label_values) == num_classes
        if regions is not None or not valid or not different:
            raise DataError(
                f"label_values is {label_values!r}; it is a list of {num_classes} different whole numbers from 1 to "
                f"{LARGEST_VALUE}, one for each class, and not for overlapping regions."
            )

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(data):
            result[self.target] = data[key]
            if self.label_values is not None:
                large = max(self.label_values) > 255
                result[self.target] = torch.zeros_like(data[key], dtype=torch.int32 if large else torch.uint8)
                for c, value in enumerate(self.label_values):
                    result[self.target].masked_fill_(data[key] == c + 1, value)
        return result
