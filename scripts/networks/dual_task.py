"""Dual-task network: any encoder with two decoders, a segmentation and a distance head on each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from scripts.errors import UserError

from .blocks import check_input
from .heads import TASKS
from .layers import PointwiseConv3d
from .network import Network


class DualTaskNetwork(Network):
    """What DBiSL trains (Li, section 3.1 and Figure 2), for whatever backbone a subclass gives it.

    Args:
        encoder: takes the image (B, in_channels, H, W, D), returns a list of features, the coarsest last.
        decoder_phi: takes that list, returns features (B, channels, H, W, D) at full resolution.
        decoder_psi: the same by another way of upsampling, so that the two see the shared features differently.
        in_channels: channels of the image (modalities).
        num_classes: foreground classes C; every head has one output map per class.
        channels: of both decoders' features.
        factor: every extent of the image has to be a multiple of it.
        tasks: the heads on each decoder, "segmentation" and, unless it is left out, "distance".

    Raises:
        UserError: when ``tasks`` has an unknown one or lacks "segmentation".
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder_phi: nn.Module,
        decoder_psi: nn.Module,
        *,
        in_channels: int,
        num_classes: int,
        channels: int,
        factor: int = 16,
        tasks: Sequence[str] = TASKS,
    ) -> None:
        super().__init__()
        if "segmentation" not in tasks or set(tasks) - set(TASKS):
            raise UserError(f"tasks is {list(tasks)}; two decoders have 'segmentation' heads, or those and 'distance'.")
        self.in_channels = in_channels
        self.factor = factor
        self.encoder = encoder
        self.decoder_phi = decoder_phi
        self.decoder_psi = decoder_psi
        self.segmentation_head_phi = PointwiseConv3d(channels, num_classes)
        self.segmentation_head_psi = PointwiseConv3d(channels, num_classes)
        with_distance = "distance" in tasks
        self.distance_head_phi = PointwiseConv3d(channels, num_classes) if with_distance else None
        self.distance_head_psi = PointwiseConv3d(channels, num_classes) if with_distance else None

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``logits_phi`` and ``logits_psi``, before the sigmoid; with the distance task ``distance_phi`` and ``_psi``.

        Extents are multiples of ``factor``; see :class:`Network`.
        """
        return self.decode(self.encode(x))

    @torch.jit.export
    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The encoder's features of an image, finest first."""
        check_input(x, self.in_channels, self.factor)
        return self.encoder(x)

    @torch.jit.export
    def decode(self, encoded: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The heads from what :meth:`encode` returned."""
        heads = self._phi(encoded, True)
        heads.update(self._psi(encoded, True))
        return heads

    @torch.jit.export
    def forward_decoder(self, x: torch.Tensor, decoder: str, with_distance: bool) -> dict[str, torch.Tensor]:
        """The heads of one decoder; the other is not run.

        Args:
            x: as in :meth:`forward_heads`.
            decoder: "phi" or "psi".
            with_distance: run the distance head too, if there is one.

        Returns:
            Those of :meth:`forward_heads` whose names end in the decoder's.

        Raises:
            UserError: when ``decoder`` is neither, or the channels or extents of ``x`` do not fit.
        """
        if decoder not in ["phi", "psi"]:
            raise UserError(f"decoder is {decoder}; it is 'phi' or 'psi'.")
        encoded = self.encode(x)
        return self._phi(encoded, with_distance) if decoder == "phi" else self._psi(encoded, with_distance)

    def _phi(self, encoded: list[torch.Tensor], with_distance: bool) -> dict[str, torch.Tensor]:
        features = self.decoder_phi(encoded)
        heads: dict[str, torch.Tensor] = {"logits_phi": self.segmentation_head_phi(features)}
        if with_distance and self.distance_head_phi is not None:
            heads["distance_phi"] = torch.tanh(self.distance_head_phi(features))
        return heads

    def _psi(self, encoded: list[torch.Tensor], with_distance: bool) -> dict[str, torch.Tensor]:
        features = self.decoder_psi(encoded)
        heads: dict[str, torch.Tensor] = {"logits_psi": self.segmentation_head_psi(features)}
        if with_distance and self.distance_head_psi is not None:
            heads["distance_psi"] = torch.tanh(self.distance_head_psi(features))
        return heads

    @torch.jit.export
    def probability_of(self, heads: dict[str, torch.Tensor]) -> torch.Tensor:
        """What :meth:`probability` returns, from ``heads`` that have been computed already."""
        return 0.5 * (torch.sigmoid(heads["logits_phi"]) + torch.sigmoid(heads["logits_psi"]))

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of the two decoders' probabilities."""
        encoded = self.encode(x)
        heads = self._phi(encoded, False)
        heads.update(self._psi(encoded, False))
        return self.probability_of(heads)
