"""Maps: runs a dual-task network so that its signed distance comes out beside the probability."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import nn


class WithDistance(nn.Module):
    """Wraps a network for sliding windows: probability and signed distance as 2C channels of one tensor.

    Args:
        network: has ``forward_heads`` with heads called ``logits...`` and ``distance...``; each kind is averaged.
        enabled: False makes this a plain call of the network, whose distance heads then cost nothing.

    Raises:
        ValueError: on the first call, when the network has no distance head, or is an export that has no heads at all.
    """

    def __init__(self, network: nn.Module, *, enabled: bool = True) -> None:
        super().__init__()
        self.network = network
        self.enabled = enabled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D) probability, or with ``enabled`` (B, 2C, H, W, D): C probabilities, then C distances."""
        if not self.enabled:
            return self.network(x)
        forward_heads: Any = getattr(self.network, "forward_heads", None)
        if forward_heads is None:
            raise ValueError(
                f"save_distance needs the distance heads, which a {type(self.network).__name__} does not have: "
                "use model.pt or TorchScript."
            )
        heads = forward_heads(x)
        logits = [head for name, head in heads.items() if name.startswith("logits")]
        distance = [head for name, head in heads.items() if name.startswith("distance")]
        if not distance:
            raise ValueError(f"save_distance needs a distance head and the network has only {sorted(heads)}.")
        probability = torch.stack([torch.sigmoid(head) for head in logits]).mean(0)
        return torch.cat([probability, torch.stack(distance).mean(0)], dim=1)


class SplitMapsd(MapTransform):
    """Splits the 2C channels of :class:`WithDistance` into the key itself (probability) and "distance".

    Args:
        keys: of the (2C, H, W, D) tensor.
        num_classes: C.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result["distance"] = result[key][self.num_classes :]
            result[key] = result[key][: self.num_classes]
        return result
