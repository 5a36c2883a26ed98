"""Dual-task V-Net: one encoder, two decoders that upsample differently, a segmentation and a distance head on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import torch
from torch import nn

from .blocks import Decoder, Encoder, check_input
from .heads import TASKS


class DualTaskVNet(nn.Module):
    """The network of DBiSL (Li, section 3.1 and Figure 2).

    Decoder phi upsamples with transposed convolutions, decoder psi with trilinear interpolation and a convolution, so
    that the two see the shared features differently. The paper says "distinct upsampling strategies" without naming
    them; this pair gives its 12.35 million parameters (12,347,716 with the default arguments). Without the distance
    heads it is the network of MC-Net (12,347,682 parameters).

    Args:
        in_channels: channels of the image (modalities).
        num_classes: foreground classes C; every head has one output map per class.
        base_filters: channels at full resolution; the papers use 16. Cost and parameters grow with its square.
        tasks: the heads on each decoder, "segmentation" and, unless it is left out, "distance".
        dropout: probability of dropping a whole channel, at the bottleneck and before the heads; 0 switches it off.

    Raises:
        ValueError: when ``tasks`` has an unknown one or lacks "segmentation".

    Example:
        >>> network = DualTaskVNet().eval()
        >>> network(torch.zeros(1, 1, 32, 32, 16)).shape
        torch.Size([1, 1, 32, 32, 16])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        base_filters: int = 16,
        *,
        tasks: Sequence[str] = TASKS,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if "segmentation" not in tasks or set(tasks) - set(TASKS):
            raise ValueError(
                f"tasks is {list(tasks)}; two decoders have 'segmentation' heads, or those and 'distance'."
            )
        with_distance = "distance" in tasks
        self.in_channels = in_channels
        self.encoder = Encoder(in_channels, base_filters, dropout=dropout)
        self.decoder_phi = Decoder(base_filters, upsampling_mode="transposed", dropout=dropout)
        self.decoder_psi = Decoder(base_filters, upsampling_mode="trilinear", dropout=dropout)
        self.segmentation_head_phi = nn.Conv3d(base_filters, num_classes, 1)
        self.segmentation_head_psi = nn.Conv3d(base_filters, num_classes, 1)
        self.distance_head_phi = nn.Conv3d(base_filters, num_classes, 1) if with_distance else None
        self.distance_head_psi = nn.Conv3d(base_filters, num_classes, 1) if with_distance else None

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """All heads by name, in training as in evaluation mode.

        Args:
            x: image (B, in_channels, H, W, D), extents multiples of 16.

        Returns:
            Tensors (B, C, H, W, D): ``logits_phi`` and ``logits_psi``, segmentation before the sigmoid; with the
            distance task ``distance_phi`` and ``distance_psi``, signed, in [-1, 1], negative inside the object.

        Raises:
            ValueError: when the channels or extents of ``x`` do not fit.
        """
        check_input(x, self.in_channels)
        features = self.encoder(x)
        phi = self.decoder_phi(features)
        psi = self.decoder_psi(features)
        heads: dict[str, torch.Tensor] = {
            "logits_phi": self.segmentation_head_phi(phi),
            "logits_psi": self.segmentation_head_psi(psi),
        }
        if self.distance_head_phi is not None:
            heads["distance_phi"] = torch.tanh(self.distance_head_phi(phi))
        if self.distance_head_psi is not None:
            heads["distance_psi"] = torch.tanh(self.distance_head_psi(psi))
        return heads

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, dict[str, torch.Tensor]]:
        """The heads in training mode; in evaluation mode foreground probabilities (B, C, H, W, D), float, [0, 1].

        The probability is the mean of the two decoders'. Only the segmentation heads are run for it.
        """
        if self.training:
            return self.forward_heads(x)
        check_input(x, self.in_channels)
        features = self.encoder(x)
        phi = torch.sigmoid(self.segmentation_head_phi(self.decoder_phi(features)))
        psi = torch.sigmoid(self.segmentation_head_psi(self.decoder_psi(features)))
        return 0.5 * (phi + psi)
