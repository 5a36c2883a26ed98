"""Two V-Nets: two networks that share nothing but the image, of the same task (CPS) or of one task each (DTML)."""

from __future__ import annotations

import torch

from .network import Network
from .normalization import set_normalization
from .vnet import VNet


class TwinVNet(Network):
    """The two networks of CPS, of the same form and different random weights.

    A prediction is their mean (the paper takes the first).

    Args:
        in_channels: channels of the image (modalities).
        num_classes: foreground classes C.
        base_filters: channels at full resolution of each network; the papers use 16.
        activation: of the segmentation heads, "sigmoid" or "softmax", see :class:`~scripts.networks.VNet`.
        normalization: see :class:`~scripts.networks.VNet`.
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
        first, second = self.network_a.forward_heads(x), self.network_b.forward_heads(x)
        return {"logits_a": first["logits"], "logits_b": second["logits"]}

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of the two."""
        return 0.5 * (self.network_a.probability(x) + self.network_b.probability(x))


class PairedVNet(Network):
    """The two networks of DTML (Zhang and Zhang, Figure 1): M_s with a segmentation head, M_d with a distance head.

    Twice the V-Net: 18,897,698 parameters with the default arguments. Only M_s, 9,448,849 of them, is run in evaluation
    mode.

    Args:
        in_channels: channels of the image (modalities).
        num_classes: foreground classes C; every head has one output map per class.
        base_filters: channels at full resolution of each network; the papers use 16.
        normalization: see :class:`~scripts.networks.VNet`.
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
        self.segmentation_network = VNet(in_channels, num_classes, base_filters, dropout=dropout)
        self.distance_network = VNet(in_channels, num_classes, base_filters, tasks=("distance",), dropout=dropout)
        set_normalization(self, normalization)

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``logits`` of M_s and ``distance`` of M_d, of extents that are multiples of 16, see :class:`Network`."""
        segmentation, distance = self.segmentation_network.forward_heads(x), self.distance_network.forward_heads(x)
        return {"logits": segmentation["logits"], "distance": distance["distance"]}

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """That of M_s."""
        return self.segmentation_network.probability(x)
