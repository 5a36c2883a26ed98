"""Twin V-Net: two V-Nets of the same form and different random weights, that share nothing but the image."""

from __future__ import annotations

import torch

from .network import Network
from .normalization import set_normalization
from .vnet import VNet


class TwinVNet(Network):
    """The two networks of CPS; a prediction is their mean (the paper takes the first).

    Args:
        in_channels: channels of the image (modalities).
        num_classes: foreground classes C.
        base_filters: channels at full resolution of each network; the papers use 16.
        activation: of the segmentation heads, "sigmoid" or "softmax", see :class:`~scripts.networks.VNet`.
        normalization: "batch" (the papers' BatchNorm), "group" or "instance", see
            :func:`~scripts.networks.normalization.set_normalization`.
        dropout: probability of dropping a whole channel, at the bottlenecks and before the heads; 0 switches it off.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        base_filters: int = 16,
        *,
        activation: str = "sigmoid",
        normalization: str = "batch",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.network_a = VNet(in_channels, num_classes, base_filters, activation=activation, dropout=dropout)
        self.network_b = VNet(in_channels, num_classes, base_filters, activation=activation, dropout=dropout)
        set_normalization(self, normalization)

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``logits_a`` and ``logits_b``, of extents that are multiples of 16, see :class:`Network`."""
        return {
            "logits_a": self.network_a.forward_heads(x)["logits"],
            "logits_b": self.network_b.forward_heads(x)["logits"],
        }

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of the two."""
        return 0.5 * (self.network_a.probability(x) + self.network_b.probability(x))
