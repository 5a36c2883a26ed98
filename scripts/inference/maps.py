"""Maps: the further outputs of a predictor, by the names of the options that ask for them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.data import DataError


def extra_maps(*, save_distance: bool = False, save_uncertainty: bool = False) -> list[str]:
    """The names of the maps that are to be written beside the mask; none by default."""
    return [name for name, on in (("distance", save_distance), ("uncertainty", save_uncertainty)) if on]


class SplitMapsd(MapTransform):
    """Splits the channels of a :class:`Predictor` into the key itself (probability) and one key for each map.

    Args:
        keys: of the ((1 + M)·C, H, W, D) tensor.
        num_classes: C.
        maps: M names, in the order of the channels; they become keys.
    """

    def __init__(self, keys: KeysCollection, num_classes: int, maps: Sequence[str]) -> None:
        super().__init__(keys)
        self.num_classes = num_classes
        self.maps = maps

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key], *parts = result[key].split(self.num_classes)
            result.update(zip(self.maps, parts))
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
