"""Dual-task SegResNet: MONAI's SegResNet with a second decoder, a segmentation and a distance head on each."""

from __future__ import annotations

import torch
from monai.networks.nets import SegResNet
from torch import nn

from .dual_task import DualTaskNetwork
from .normalization import monai_normalization


class SegResNetEncoder(nn.Module):
    """The contracting path of a SegResNet, with dropout at its end.

    Args:
        network: gives its blocks away.
        dropout: probability of dropping a channel of the bottleneck.
    """

    def __init__(self, network: SegResNet, *, dropout: float) -> None:
        super().__init__()
        self.stem = network.convInit
        self.levels = network.down_layers
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The features of every level, finest first."""
        x = self.stem(x)
        features: list[torch.Tensor] = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        features[-1] = self.dropout(features[-1])
        return features


class SegResNetDecoder(nn.Module):
    """The expanding path of a SegResNet as far as its last activation, with dropout at its end.

    Args:
        network: gives its blocks away.
        dropout: probability of dropping a channel of the result, right before the heads.
    """

    def __init__(self, network: SegResNet, *, dropout: float) -> None:
        super().__init__()
        self.upsamplings = network.up_samples
        self.levels = network.up_layers
        self.normalization = network.conv_final[:2]
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Full-resolution features (B, base_filters, H, W, D) from the encoder's ``features``."""
        x = features[-1]
        skip = len(features) - 2
        for up, level in zip(self.upsamplings, self.levels):
            x = level(up(x) + features[skip])
            skip -= 1
        return self.dropout(self.normalization(x))


class DualTaskSegResNet(DualTaskNetwork):
    """DBiSL over the blocks of ``monai.networks.nets.SegResNet`` with its default depth.

    Both decoders put a 1x1x1 convolution before the upsampling: phi's is a transposed convolution, psi's trilinear
    interpolation. Four levels: every extent is a multiple of 8.

    Args:
        in_channels: channels of the image (modalities).
        num_classes: foreground classes C; every head has one output map per class.
        base_filters: channels at full resolution.
        normalization: "group", as in MONAI's, "batch" or "instance"; the groups are as many as 8 and the first channels
            have in common.
        dropout: probability of dropping a whole channel, at the bottleneck and before the heads, as in the V-Net.

    Raises:
        UserError: when ``normalization`` is unknown.

    Example:
        >>> network = DualTaskSegResNet(base_filters=8).eval()
        >>> network(torch.zeros(1, 1, 32, 16, 8)).shape
        torch.Size([1, 1, 32, 16, 8])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        base_filters: int = 16,
        *,
        normalization: str = "group",
        dropout: float = 0.5,
    ) -> None:
        def whole_network(upsample_mode: str) -> SegResNet:
            return SegResNet(
                spatial_dims=3,
                init_filters=base_filters,
                in_channels=in_channels,
                norm=monai_normalization(normalization, base_filters),
                upsample_mode=upsample_mode,
            )

        first = whole_network("deconv")
        super().__init__(
            SegResNetEncoder(first, dropout=dropout),
            SegResNetDecoder(first, dropout=dropout),
            SegResNetDecoder(whole_network("nontrainable"), dropout=dropout),
            in_channels=in_channels,
            num_classes=num_classes,
            channels=base_filters,
            factor=8,
        )
