"""Pyramid V-Net: the V-Net with a segmentation head on every level of its decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .heads import segmentation_maps
from .layers import PointwiseConv3d
from .vnet import VNet


class PyramidVNet(VNet):
    """The network of URPC (Luo et al.): pyramid predictions from the V-Net of the semi-supervised benchmarks.

    A 1x1x1 convolution behind each decoder level gives logits at 1, 1/2, 1/4 and 1/8 of the resolution, which are
    interpolated trilinearly to the full one. With one channel and two output maps it has 9,449,320 parameters: the
    V-Net's 9,448,866 and 454 for the three heads more. In evaluation mode it is the V-Net.

    Args: see :class:`~scripts.networks.VNet`; ``activation`` and ``dropout`` are those of every head.

    Raises:
        UserError: when ``activation`` is unknown.
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
        super().__init__(
            in_channels, num_classes, base_filters, activation=activation, normalization=normalization, dropout=dropout
        )
        maps = segmentation_maps(num_classes, activation)
        self.segmentation_head_2 = PointwiseConv3d(2 * base_filters, maps)
        self.segmentation_head_4 = PointwiseConv3d(4 * base_filters, maps)
        self.segmentation_head_8 = PointwiseConv3d(8 * base_filters, maps)

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``logits`` of the full resolution, ``logits_2``, ``_4`` and ``_8`` of a half, a quarter and an eighth of it.

        All have the full resolution's extents, which are multiples of 16; see :class:`Network`.
        """
        assert self.segmentation_head is not None  # which a V-Net may lack and this one does not
        levels = [self.decoder.dropout(level) for level in self.decoder.every_level(self.encode(x))]
        return {
            "logits": self.segmentation_head(levels[3]),
            "logits_2": enlarged(self.segmentation_head_2(levels[2]), 2.0),
            "logits_4": enlarged(self.segmentation_head_4(levels[1]), 4.0),
            "logits_8": enlarged(self.segmentation_head_8(levels[0]), 8.0),
        }


def enlarged(logits: torch.Tensor, factor: float) -> torch.Tensor:
    """``logits`` (B, maps, h, w, d) with extents ``factor`` times as long, by trilinear interpolation."""
    return F.interpolate(logits, scale_factor=factor, mode="trilinear", align_corners=False)
