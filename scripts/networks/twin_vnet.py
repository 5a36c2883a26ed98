"""Two V-Nets: two networks that share nothing but the image, of the same task (CPS) or of one task each (DTML)."""

from __future__ import annotations

import torch

from .network import Network
from .normalization import set_normalization
from .vnet import VNet


class TwinVNet(Network):
    """The two networks of CPS, of the same form and different random weights.

    A prediction is their mean (the paper takes the first).

    Args: see :class:`~scripts.networks.VNet`; they are those of each network.
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

    Args: see :class:`~scripts.networks.VNet`; they are those of each network. Every head has one map per class.
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
