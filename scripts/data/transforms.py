"""Transforms: MONAI dictionary transforms between label values and foreground channels."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import (
    MapTransform,
    RandCropByPosNegLabeld,
    Randomizable,
    RandRotate90d,
    RandSpatialCropd,
    ScaleIntensityRange,
    Spacingd,
)
from torch import nn

from scripts.errors import UserError

from .label_coding import LabelCoding


def crop_size(patch_size: Sequence[int], augmentation: Sequence[Any], margin: float = 1.0) -> list[int]:
    """Size of the crop from which augmentation makes a patch.

    Crops are taken before they are turned, which costs a fraction of turning whole volumes. A quarter turn swaps two
    axes, so the crop is as long along both as the patch is along either.

    Args:
        patch_size: extents of the patch, in voxels.
        augmentation: MONAI's transforms of the crop; those that are ``RandRotate90d`` count.
        margin: factor, 1 or more, for transforms that bring in what lies beyond the patch.

    Raises:
        UserError: when ``margin`` is below 1.
    """
    if margin < 1:
        raise UserError(f"crop_margin is {margin}; it is a factor of the patch's extents, 1 or more.")
    extents = [round(extent * margin) for extent in patch_size]
    for transform in augmentation:
        if isinstance(transform, RandRotate90d):
            first, second = transform.spatial_axes
            extents[first] = extents[second] = max(extents[first], extents[second])
    return extents


class _LabelCodingd(MapTransform):
    """Has a label coding."""

    def __init__(self, keys: KeysCollection, label_coding: LabelCoding, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_coding = label_coding


class _Convertd(_LabelCodingd):
    """Applies one direction of a label coding, which works on batches, to single cases."""

    def convert(self, batch: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.convert(result[key][None])[0]
        return result


class EncodeLabelsd(_Convertd):
    """Label values (1, H, W, D) to foreground channels (C, H, W, D), float32, see :class:`LabelCoding`."""

    def convert(self, batch: torch.Tensor) -> torch.Tensor:
        return self.label_coding.encode(batch)


class DecodeProbabilitiesd(_Convertd):
    """Foreground probabilities (C, H, W, D) to label values, uint8, see :class:`LabelCoding`."""

    def convert(self, batch: torch.Tensor) -> torch.Tensor:
        return self.label_coding.decode(batch)


class MarkUnknownd(_LabelCodingd):
    """Writes into label values (1, H, W, D) what is unknown of them, see :meth:`LabelCoding.mark`.

    Takes "annotated", the list of label values that were annotated, from cases that have it.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        annotated = result.pop("annotated", None)
        for key in self.key_iterator(result):
            if annotated is not None or self.label_coding.partial:
                result[key] = self.label_coding.mark(result[key], annotated)
        return result


class KnownOnlyd(MapTransform):
    """Removes predicted classes where the label does not know them, so that no metric counts them.

    Args:
        keys: of label values (1, H, W, D), or of the maps (C, H, W, D) of overlapping regions.
        label_coding: see :class:`LabelCoding`.
        label_key: of the marked label values (1, H, W, D).
    """

    def __init__(self, keys: KeysCollection, label_coding: LabelCoding, label_key: str = "label") -> None:
        super().__init__(keys)
        self.label_coding = label_coding
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        known = self.label_coding.known(result[self.label_key][None])
        if known is None:
            return result
        for key in self.key_iterator(result):
            if self.label_coding.regions is not None:
                result[key] = result[key] * known[0]
                continue
            for c in range(self.label_coding.num_classes):
                result[key] = result[key].masked_fill((result[key] == c + 1) & ~known[0, c : c + 1], 0)
        return result


class SpacingOfKeysd(Spacingd):
    """MONAI's Spacingd for cases with additional entries, such as the "image_path" that MONAI Label adds.

    MONAI 1.6.1 takes every entry whose name begins with "image_" for a dictionary of the image's metadata.
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, Any]:
        own = {key: data[key] for key in self.keys if key in data}
        return {**data, **super().__call__(own, lazy=lazy)}


class IntensityWindowd(MapTransform):
    """Clips intensities to ``window``, two ascending numbers, and maps it to 0 to 1; does nothing where it is None."""

    def __init__(self, keys: KeysCollection, window: Sequence[float] | None) -> None:
        super().__init__(keys)
        self.scale = None if window is None else ScaleIntensityRange(window[0], window[1], 0, 1, clip=True)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        return {**data, **{key: self.scale(data[key]) for key in self.key_iterator(data) if self.scale}}


class RandomCropd(Randomizable, MapTransform):
    """A random crop: of a case with a label, perhaps around its foreground or background; of another, anywhere.

    Args:
        keys: those of them that a case has are cropped alike.
        spatial_size: of the crop, in voxels.
        foreground: share, 0 to 1, of crops that are centred on foreground, by MONAI's RandCropByPosNegLabel, for which
            unknown voxels are background; 0: all crops lie anywhere.
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int], foreground: float = 0) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.anywhere = RandSpatialCropd(keys, spatial_size, random_size=False, allow_missing_keys=True)
        self.around: _ForegroundCropd | None = None
        if foreground:
            self.around = _ForegroundCropd(
                keys, "label", spatial_size, pos=foreground, neg=1 - foreground, allow_missing_keys=True
            )

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandomCropd:
        self.anywhere.set_random_state(seed, state)
        if self.around is not None:
            self.around.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        if self.around is None or "label" not in data:
            return dict(self.anywhere(data))
        return dict(self.around(data)[0])


class _ForegroundCropd(RandCropByPosNegLabeld):
    """Unknown voxels do not count as foreground."""

    def randomize(self, label: torch.Tensor | None = None, *indices: Any) -> None:
        super().randomize(None if label is None else label.clamp(min=0), *indices)


class PreGeneratedMapd(MapTransform):
    """Adds "distance", the signed distance map (C, H, W, D) of the whole volume, made before cropping (Table 10).

    It is NaN where it depends on voxels that are unknown.

    Args:
        keys: of the label values (1, H, W, D); cases without it are left as they are.
        label_coding: see :class:`LabelCoding`.
        segmentation_to_distance: the operator; see :class:`~scripts.distance.SegmentationToDistance`.
    """

    def __init__(self, keys: KeysCollection, label_coding: LabelCoding, segmentation_to_distance: nn.Module) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.label_coding = label_coding
        # A copy on the CPU, where the volumes are cached; the objective's own may be on a GPU.
        self.segmentation_to_distance: Any = copy.deepcopy(segmentation_to_distance).cpu()

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            label, known = self.label_coding.encode(result[key][None]), self.label_coding.known(result[key][None])
            with torch.no_grad():
                if known is None:
                    result["distance"] = self.segmentation_to_distance(label)[0]
                    continue
                part = self.segmentation_to_distance.of_partial(label, known)
                result["distance"] = part.map.masked_fill(~part.known, torch.nan)[0]
        return result
