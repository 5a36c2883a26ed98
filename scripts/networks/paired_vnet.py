"""Paired V-Nets: two networks with one task each, that share nothing but the image."""

from __future__ import annotations

import torch

from .network import Network
from .normalization import set_normalization
from .vnet import VNet


class PairedVNet(Network):
    """The two networks of DTML (Zhang and Zhang, Figure 1): M_s with a segmentation head, M_d with a distance head.

    Twice the V-Net: 18,897,698 parameters with the default arguments. Only M_s, 9,448,849 of them, is run in evaluation
    mode.

    Args:
        in_channels: channels of the image (modalities).
        num_classes: foreground classes C; every head has one output map per class.
        base_filters: channels at full resolution of each network; the papers use 16.
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
        normalization: str = "batch",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.segmentation_network = VNet(
            in_channels, num_classes, base_filters, tasks=("segmentation",), dropout=dropout
        )
        self.distance_network = VNet(in_channels, num_classes, base_filters, tasks=("distance",), dropout=dropout)
        set_normalization(self, normalization)

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``logits`` of M_s and ``distance`` of M_d, of extents that are multiples of 16, see :class:`Network`."""
        return {
            "logits": self.segmentation_network.forward_heads(x)["logits"],
            "distance": self.distance_network.forward_heads(x)["distance"],
        }

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """That of M_s."""
        return self.segmentation_network.probability(x)
