"""V-Net: one encoder, one decoder, a segmentation head; the labels-only baseline of the papers."""

from __future__ import annotations

from typing import Union

import torch
from torch import nn

from .blocks import Decoder, Encoder, check_input


class VNet(nn.Module):
    """The single-decoder V-Net of the semi-supervised benchmarks, made of the same parts as :class:`DualTaskVNet`.

    With one input channel and two output maps it has the papers' 9.45 million parameters (9,448,866).

    Args:
        in_channels: channels of the image (modalities).
        num_classes: foreground classes C; the head has one output map per class.
        base_filters: channels at full resolution; the papers use 16.
        upsampling_mode: "transposed" or "trilinear".
        dropout: probability of dropping a whole channel, at the bottleneck and before the head; 0 switches it off.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        base_filters: int = 16,
        *,
        upsampling_mode: str = "transposed",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = Encoder(in_channels, base_filters, dropout=dropout)
        self.decoder = Decoder(base_filters, upsampling_mode=upsampling_mode, dropout=dropout)
        self.segmentation_head = nn.Conv3d(base_filters, num_classes, 1)

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The head by name: ``logits`` (B, C, H, W, D), segmentation before the sigmoid.

        Args:
            x: image (B, in_channels, H, W, D), extents multiples of 16.

        Raises:
            ValueError: when the channels or extents of ``x`` do not fit.
        """
        check_input(x, self.in_channels)
        return {"logits": self.segmentation_head(self.decoder(self.encoder(x)))}

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, dict[str, torch.Tensor]]:
        """The heads in training mode; in evaluation mode foreground probabilities (B, C, H, W, D), float, [0, 1]."""
        heads = self.forward_heads(x)
        if self.training:
            return heads
        return torch.sigmoid(heads["logits"])
