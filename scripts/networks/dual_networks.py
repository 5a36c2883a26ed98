"""Dual Networks: a V-Net and a 3D ResNet-34 with a V-Net decoder beside each other, both with softmax heads."""

from __future__ import annotations

import torch
from monai.networks.nets.resnet import ResNetBlock
from torch import nn

from .blocks import Decoder, Encoder, check_input, normalize_and_activate
from .heads import foreground_probability, segmentation_maps
from .layers import PointwiseConv3d
from .network import Network
from .normalization import set_normalization

# Basic blocks of every stage of a ResNet-34.
RESNET_BLOCKS = (3, 4, 6, 3)


def residual_stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    """``blocks`` basic blocks; the first halves the resolution, and its shortcut is a strided 1x1x1 convolution."""
    shortcut = nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm3d(out_channels)
    )
    first = ResNetBlock(in_channels, out_channels, stride=2, downsample=shortcut)
    return nn.Sequential(first, *[ResNetBlock(out_channels, out_channels) for _ in range(blocks - 1)])


class ResNetEncoder(nn.Module):
    """3D ResNet-34 whose stem keeps the resolution, so that its five levels have the V-Net encoder's shapes.

    Args:
        in_channels: channels of the image.
        base_filters: channels at full resolution; the paper's size is 16.
    """

    def __init__(self, in_channels: int, base_filters: int = 16) -> None:
        super().__init__()
        stem = nn.Conv3d(in_channels, base_filters, 7, padding=3, bias=False)
        self.levels = nn.ModuleList([normalize_and_activate(stem, base_filters)])
        for level, blocks in enumerate(RESNET_BLOCKS):
            channels = base_filters * 2**level
            self.levels.append(residual_stage(channels, 2 * channels, blocks))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The features of every level, finest first, as :class:`~scripts.networks.blocks.Encoder` has them."""
        features: list[torch.Tensor] = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class Stream(nn.Module):
    """An encoder, a V-Net decoder and a segmentation head, which gives its features away, too.

    Args:
        encoder: returns five levels of features, finest first.
        base_filters: as in the encoder.
        maps: of the head.
        dropout: probability of dropping a channel of the decoder's result, between the features and the head.
    """

    def __init__(self, encoder: nn.Module, base_filters: int, maps: int, *, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(base_filters, upsampling_mode="transposed", dropout=0.0)
        self.dropout = nn.Dropout3d(float(dropout))
        self.segmentation_head = PointwiseConv3d(base_filters, maps)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, maps, H, W, D) and features (B, base_filters, H, W, D) of an image (B, channels, H, W, D)."""
        features = self.decoder(self.encoder(x))
        return self.segmentation_head(self.dropout(features)), features


class DualNetworks(Network):
    """The two networks of Dual Networks (Lu et al.), which share nothing and see the same crops.

    Stream v is the V-Net of :class:`~scripts.networks.VNet` (9,448,866 parameters with one channel and one class, the
    paper's 9.45 million), stream r a 3D ResNet-34 with the V-Net's decoder (17,930,354, its 17.93 million).
    Convolutions start Kaiming-normal; transposed ones, for which its fan-in is another, as torch does it.

    Where the sources do not say it: ResNet's convolutions have no bias, as usual; the features are taken before the
    dropout, so that two crops' features differ by what they show and not by the channels that happened to be dropped.

    Args: see :class:`~scripts.networks.VNet`; the classes exclude each other. The ResNet's bottleneck has no
    dropout.

    Example:
        >>> network = DualNetworks(base_filters=2).eval()
        >>> network(torch.zeros(1, 1, 32, 32, 16)).shape
        torch.Size([1, 1, 32, 32, 16])
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
        maps = segmentation_maps(num_classes, "softmax")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.stream_v = Stream(Encoder(in_channels, base_filters, dropout=dropout), base_filters, maps, dropout=dropout)
        self.stream_r = Stream(ResNetEncoder(in_channels, base_filters), base_filters, maps, dropout=dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)
        set_normalization(self, normalization)

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``logits_v`` and ``logits_r``, before the softmax, of extents that are multiples of 16, see :class:`Network`.

        In training mode also ``features_v`` and ``features_r`` (B, base_filters, H, W, D), for the contrastive term.
        """
        check_input(x, self.in_channels)
        logits_v, features_v = self.stream_v(x)
        logits_r, features_r = self.stream_r(x)
        heads = {"logits_v": logits_v, "logits_r": logits_r}
        if self.training:
            heads["features_v"] = features_v
            heads["features_r"] = features_r
        return heads

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of the two streams' softmax."""
        heads = self.forward_heads(x)
        v = foreground_probability(heads["logits_v"], self.num_classes)
        r = foreground_probability(heads["logits_r"], self.num_classes)
        return 0.5 * (v + r)
