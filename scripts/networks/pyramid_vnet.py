"""Pyramid V-Net: the V-Net with a segmentation head on every level of its decoder."""

from __future__ import annotations

from typing import Union

import torch
import torch.nn.functional as F

from .blocks import Decoder, Encoder, check_input
from .heads import foreground_probability, segmentation_maps
from .layers import PointwiseConv3d
from .network import Network
from .normalization import set_normalization


class PyramidVNet(Network):
    """The network of URPC (Luo et al.): pyramid predictions from the V-Net of the semi-supervised benchmarks.

    A 1x1x1 convolution behind each decoder level gives logits at 1, 1/2, 1/4 and 1/8 of the resolution, which are
    interpolated trilinearly to the full one. With one channel and two output maps it has 9,449,320 parameters: the
    V-Net's 9,448,866 and 454 for the three heads more. In evaluation mode it is the V-Net.

    Args:
        in_channels: channels of the image (modalities).
        num_classes: foreground classes C.
        base_filters: channels at full resolution; the papers use 16.
        activation: of the segmentation heads, "sigmoid" or "softmax", see :class:`VNet`.
        normalization: "batch" (the papers' BatchNorm), "group" or "instance", see
            :func:`~scripts.networks.normalization.set_normalization`.
        dropout: probability of dropping a whole channel, at the bottleneck and before every head; 0 switches it off.

    Raises:
        ValueError: when ``activation`` is unknown.
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
        maps = segmentation_maps(num_classes, activation)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.encoder = Encoder(in_channels, base_filters, dropout=dropout)
        self.decoder = Decoder(base_filters, dropout=dropout)
        self.segmentation_head = PointwiseConv3d(base_filters, maps)
        self.segmentation_head_2 = PointwiseConv3d(2 * base_filters, maps)
        self.segmentation_head_4 = PointwiseConv3d(4 * base_filters, maps)
        self.segmentation_head_8 = PointwiseConv3d(8 * base_filters, maps)
        set_normalization(self, normalization)

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """All heads by name, in training as in evaluation mode.

        Args:
            x: image (B, in_channels, H, W, D), extents multiples of 16.

        Returns:
            ``logits`` of the full resolution, ``logits_2``, ``logits_4`` and ``logits_8`` of a half, a quarter and an
            eighth of it, all of them interpolated to it: (B, C, H, W, D) before the sigmoid, or (B, C + 1, H, W, D)
            before the softmax.

        Raises:
            ValueError: when the channels or extents of ``x`` do not fit.
        """
        check_input(x, self.in_channels)
        levels = [self.decoder.dropout(level) for level in self.decoder.every_level(self.encoder(x))]
        return {
            "logits": self.segmentation_head(levels[3]),
            "logits_2": enlarged(self.segmentation_head_2(levels[2]), 2.0),
            "logits_4": enlarged(self.segmentation_head_4(levels[1]), 4.0),
            "logits_8": enlarged(self.segmentation_head_8(levels[0]), 8.0),
        }

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, dict[str, torch.Tensor]]:
        """The heads in training mode; in evaluation mode the foreground probabilities of the full-resolution head.

        The probabilities are (B, C, H, W, D), float, [0, 1].
        """
        if self.training:
            return self.forward_heads(x)
        check_input(x, self.in_channels)
        logits = self.segmentation_head(self.decoder(self.encoder(x)))
        return foreground_probability(logits, self.num_classes)


def enlarged(logits: torch.Tensor, factor: float) -> torch.Tensor:
    """``logits`` (B, maps, h, w, d) with extents ``factor`` times as long, by trilinear interpolation."""
    return F.interpolate(logits, scale_factor=factor, mode="trilinear", align_corners=False)
