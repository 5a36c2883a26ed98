"""V-Net: one encoder, one decoder, and a segmentation head, a distance head or both on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scripts.errors import UserError

from .blocks import Decoder, Encoder, check_input
from .heads import TASKS, foreground_probability, segmentation_maps
from .layers import PointwiseConv3d
from .network import Network
from .normalization import set_normalization


class VNet(Network):
    """The single-decoder V-Net of the semi-supervised benchmarks, made of the same parts as :class:`DualTaskVNet`.

    With one input channel and two output maps it has the papers' 9.45 million parameters (9,448,866). With both tasks
    it is the network of DTC (Luo et al., Figure 1).

    Args:
        in_channels: channels of the image (modalities).
        num_classes: foreground classes C.
        base_filters: channels at full resolution; the papers use 16.
        tasks: the heads, "segmentation", "distance" or both.
        activation: of the segmentation head: "sigmoid" (C maps) or "softmax" (C + 1 maps, background first; the classes
            exclude each other).
        upsampling_mode: "transposed" or "trilinear".
        normalization: "batch" (the papers' BatchNorm), "group" or "instance", see
            :func:`~scripts.networks.normalization.set_normalization`.
        dropout: probability of dropping a whole channel, at the bottleneck and before the heads; 0 switches it off.

    Raises:
        UserError: when ``tasks`` is empty or has an unknown one, or ``activation``, ``upsampling_mode`` or
            ``normalization`` is unknown.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        base_filters: int = 16,
        *,
        tasks: Sequence[str] = ("segmentation",),
        activation: str = "sigmoid",
        upsampling_mode: str = "transposed",
        normalization: str = "batch",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not tasks or set(tasks) - set(TASKS):
            raise UserError(f"tasks is {list(tasks)}; a network has one or both of {', '.join(TASKS)}.")
        maps = segmentation_maps(num_classes, activation)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.encoder = Encoder(in_channels, base_filters, dropout=dropout)
        self.decoder = Decoder(base_filters, upsampling_mode=upsampling_mode, dropout=dropout)
        self.segmentation_head = PointwiseConv3d(base_filters, maps) if "segmentation" in tasks else None
        self.distance_head = PointwiseConv3d(base_filters, num_classes) if "distance" in tasks else None
        set_normalization(self, normalization)

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``logits``, ``distance`` or both, of extents that are multiples of 16, see :class:`Network`."""
        return self.decode(self.encode(x))

    @torch.jit.export
    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The encoder's features of an image, finest first."""
        check_input(x, self.in_channels)
        return self.encoder(x)

    @torch.jit.export
    def decode(self, encoded: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The heads from what :meth:`encode` returned."""
        features = self.decoder(encoded)
        heads: dict[str, torch.Tensor] = {}
        if self.segmentation_head is not None:
            heads["logits"] = self.segmentation_head(features)
        if self.distance_head is not None:
            heads["distance"] = torch.tanh(self.distance_head(features))
        return heads

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """From the segmentation head, or where there is none from the distance z: (1 - z) / 2, foreground where z < 0.

        Not the steep sigmoid of training: where several classes are inside it is 1 for all of them, and a mask takes
        the class whose voxel lies deepest.
        """
        features = self.decoder(self.encode(x))
        if self.segmentation_head is not None:
            return foreground_probability(self.segmentation_head(features), self.num_classes)
        assert self.distance_head is not None  # a network has at least one of the two
        return 0.5 - 0.5 * torch.tanh(self.distance_head(features))
