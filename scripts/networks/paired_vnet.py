"""Paired V-Nets: two networks with one task each, that share nothing but the image."""

from __future__ import annotations

from typing import Union

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
        """Both heads by name, in training as in evaluation mode.

        Args:
            x: image (B, in_channels, H, W, D), extents multiples of 16.

        Returns:
            ``logits`` of M_s, (B, C, H, W, D), segmentation before the sigmoid; ``distance`` of M_d, (B, C, H, W, D),
            signed, in [-1, 1], negative inside the object.

        Raises:
            ValueError: when the channels or extents of ``x`` do not fit.
        """
        return {
            "logits": self.segmentation_network.forward_heads(x)["logits"],
            "distance": self.distance_network.forward_heads(x)["distance"],
        }

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, dict[str, torch.Tensor]]:
        """Both heads in training mode; in evaluation mode M_s's probabilities (B, C, H, W, D), float, [0, 1]."""
        if self.training:
            return self.forward_heads(x)
        return self.segmentation_network(x)
