"""V-Net parts: the convolution unit, the encoder, the decoder and the heads that every network here is made of.

This is the V-Net of the semi-supervised benchmarks (UA-MT, DTC, DTML, DBiSL), which is neither Milletari's nor
``monai.networks.nets.VNet``: no residual connections, ReLU, added skip connections, 9.45 instead of 45.6 million
parameters.
"""

from __future__ import annotations

import torch
from torch import nn

from scripts.errors import UserError

ENCODER_CONVOLUTIONS = (1, 2, 3, 3, 3)
DECODER_CONVOLUTIONS = (3, 3, 2, 1)
UPSAMPLING_MODES = ("transposed", "trilinear")


def normalize_and_activate(convolution: nn.Module, channels: int) -> nn.Sequential:
    """``convolution`` followed by BatchNorm over ``channels`` and ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm3d(channels), nn.ReLU(inplace=True))


def convolution_unit(in_channels: int, out_channels: int, repeats: int) -> nn.Sequential:
    """``repeats`` times (3x3x3 convolution, BatchNorm, ReLU) at constant resolution."""
    units = []
    for i in range(repeats):
        first = in_channels if i == 0 else out_channels
        units.append(normalize_and_activate(nn.Conv3d(first, out_channels, 3, padding=1), out_channels))
    return nn.Sequential(*units)


def downsampling(in_channels: int, out_channels: int) -> nn.Sequential:
    """Halves the resolution with a strided 2x2x2 convolution, BatchNorm and ReLU."""
    return normalize_and_activate(nn.Conv3d(in_channels, out_channels, 2, stride=2), out_channels)


def upsampling(in_channels: int, out_channels: int, mode: str, *, align_corners: bool = False) -> nn.Sequential:
    """Doubles the resolution, then BatchNorm and ReLU.

    Args:
        in_channels: channels of the coarse input.
        out_channels: channels of the fine output.
        mode: "transposed" for a 2x2x2 transposed convolution, "trilinear" for interpolation and a 3x3x3 convolution.
        align_corners: of the interpolation, see :class:`torch.nn.Upsample`.

    Raises:
        UserError: when ``mode`` is neither.
    """
    if mode == "transposed":
        return normalize_and_activate(nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2), out_channels)
    if mode == "trilinear":
        resize = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=align_corners)
        convolution = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        return normalize_and_activate(nn.Sequential(resize, convolution), out_channels)
    raise UserError(f"mode is {mode!r}; an upsampling is one of {', '.join(UPSAMPLING_MODES)}.")


class Encoder(nn.Module):
    """Five resolution levels with 1, 2, 4, 8 and 16 times ``base_filters`` channels.

    Args:
        in_channels: channels of the image.
        base_filters: channels at full resolution; the papers use 16.
        dropout: probability of dropping a channel of the bottleneck.
    """

    def __init__(self, in_channels: int, base_filters: int = 16, *, dropout: float = 0.5) -> None:
        super().__init__()
        channels = [base_filters * 2**level for level in range(len(ENCODER_CONVOLUTIONS))]
        self.levels = nn.ModuleList([convolution_unit(in_channels, channels[0], ENCODER_CONVOLUTIONS[0])])
        for coarse, fine, repeats in zip(channels[1:], channels[:-1], ENCODER_CONVOLUTIONS[1:]):
            self.levels.append(nn.Sequential(downsampling(fine, coarse), convolution_unit(coarse, coarse, repeats)))
        self.dropout = nn.Dropout3d(float(dropout))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The features of every level, finest first.

        Args:
            x: image (B, in_channels, H, W, D), each extent a multiple of 16.

        Returns:
            Five tensors, level l of shape (B, base_filters * 2**l, H / 2**l, W / 2**l, D / 2**l).
        """
        features: list[torch.Tensor] = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        features[-1] = self.dropout(features[-1])
        return features


class Decoder(nn.Module):
    """Four upsamplings with added skip connections, back to full resolution.

    Args:
        base_filters: as in the encoder.
        upsampling_mode: "transposed" or "trilinear".
        dropout: probability of dropping a channel of the result, right before the heads.
        align_corners: of the trilinear upsampling, see :class:`torch.nn.Upsample`.
    """

    def __init__(
        self,
        base_filters: int = 16,
        *,
        upsampling_mode: str = "transposed",
        dropout: float = 0.5,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.upsamplings = nn.ModuleList()
        self.levels = nn.ModuleList()
        for level, repeats in enumerate(DECODER_CONVOLUTIONS):
            fine = base_filters * 2 ** (len(DECODER_CONVOLUTIONS) - 1 - level)
            self.upsamplings.append(upsampling(2 * fine, fine, upsampling_mode, align_corners=align_corners))
            self.levels.append(convolution_unit(fine, fine, repeats))
        self.dropout = nn.Dropout3d(float(dropout))

    @torch.jit.export
    def every_level(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The result of every level before dropout, coarsest first: 1/8, 1/4, 1/2 and all of the resolution."""
        x = features[-1]
        results: list[torch.Tensor] = []
        skip = len(features) - 2
        for up, level in zip(self.upsamplings, self.levels):
            x = level(up(x) + features[skip])
            results.append(x)
            skip -= 1
        return results

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Full-resolution features (B, base_filters, H, W, D) from the encoder's ``features``."""
        return self.dropout(self.every_level(features)[-1])


def check_input(x: torch.Tensor, in_channels: int, factor: int = 16) -> None:
    """Refuses an image that the network cannot take.

    Raises:
        UserError: when ``x`` is not (B, in_channels, H, W, D) with extents that are multiples of ``factor``.
    """
    if x.dim() != 5 or x.shape[1] != in_channels:
        raise UserError(
            f"the network takes images of shape (B, {in_channels}, H, W, D) and got {list(x.shape)}: "
            "set in_channels to the number of channels of your images."
        )
    for extent in x.shape[2:]:
        if extent % factor != 0:
            raise UserError(
                f"every spatial extent must be a multiple of {factor} and the input has {list(x.shape[2:])}: "
                "choose such a patch_size; only inference by sliding windows pads."
            )
