"""Decoding: from what a network says of every voxel to maps and a mask with the label values of the original files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapLabelValue, MapTransform
from scipy import ndimage

from scripts.data import DataError, LabelCoding

LARGEST_VALUE = 65535
# Voxels that share a face, an edge or a corner are connected.
NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


def extra_maps(*, save_distance: bool = False, save_uncertainty: bool = False) -> list[str]:
    """The names of the maps that are to be written beside the mask; none by default."""
    return [name for name, on in (("distance", save_distance), ("uncertainty", save_uncertainty)) if on]


class SplitMapsd(MapTransform):
    """Splits the channels of a :class:`Predictor` into the key itself (probability) and one key for each map.

    Args:
        keys: of the ((1 + M)·C, H, W, D) tensor.
        num_classes: C.
        maps: M names, in the order of the channels; they become keys.
        keep_probability: whether the probability is to be had as "probability", too, when the key has become a mask.
    """

    def __init__(
        self, keys: KeysCollection, num_classes: int, maps: Sequence[str], *, keep_probability: bool = False
    ) -> None:
        super().__init__(keys)
        self.num_classes = num_classes
        self.maps = maps
        self.keep_probability = keep_probability

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key], *parts = result[key].split(self.num_classes)
            result |= dict(zip(self.maps, parts))
            if self.keep_probability:
                result["probability"] = result[key]
        return result


class CheckFinited(MapTransform):
    """Refuses what a network said of a volume if it is NaN or infinite anywhere: its mask would be empty there.

    Args:
        keys: of floating tensors, bounded so that their sum is finite if they are.

    Raises:
        DataError: naming the image.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            if not torch.isfinite(data[key].sum(dtype=torch.float32)):  # takes no memory, unlike isfinite of the whole
                raise DataError(
                    f"the network gives NaN for {data[key].meta.get('filename_or_obj', 'the image')}: its weights or "
                    "half precision are at fault; try other weights, or amp false."
                )
        return dict(data)


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
            if any(t != 0.5 for t in self.thresholds):
                result[key] = data[key].clone()
                for c, t in enumerate(self.thresholds):
                    p = data[key][c]
                    result[key][c] = torch.where(p > t, 0.5 + (p - t) / (2 * (1 - t)), p / (2 * t))
        return result


class OriginalValuesd(MapTransform):
    """Copies masks to another key, with the label values of the files that the training's labels were renumbered from.

    Args:
        keys: of (1, H, W, D) label values 1, ..., C, uint8.
        label_coding: of the masks; those of overlapping regions are 0 and 1 and cannot have other values.
        label_values: of the C classes, 1 to 65535; None to keep what masks have.
        target: key of the copy, uint8 or, for values above 255, int32.

    Raises:
        DataError: when the values are not C different whole numbers, or are given for overlapping regions.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_coding: LabelCoding,
        label_values: Sequence[int] | None,
        target: str = "mask",
    ) -> None:
        super().__init__(keys)
        self.target = target
        num_classes = label_coding.num_classes
        self.label_values = None if label_values is None else list(label_values)
        if self.label_values is None:
            return
        valid = all(type(value) is int and 1 <= value <= LARGEST_VALUE for value in self.label_values)
        different = len(set(self.label_values)) == len(self.label_values) == num_classes
        if label_coding.regions is not None or not valid or not different:
            raise DataError(
                f"label_values is {label_values!r}; it is a list of {num_classes} different whole numbers from 1 to "
                f"{LARGEST_VALUE}, one for each class, and not for overlapping regions."
            )

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(data):
            result[self.target] = data[key]
            if self.label_values is not None:
                numbers: Any = torch.int32 if max(self.label_values) > 255 else torch.uint8
                classes = list(range(1, len(self.label_values) + 1))
                result[self.target] = MapLabelValue(classes, self.label_values, dtype=numbers)(data[key])
        return result


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
