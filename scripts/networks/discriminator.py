"""Discriminator: tells maps that were predicted on labeled crops from those on unlabeled ones."""

from __future__ import annotations

import torch
from torch import nn

SLOPE = 0.2


def halving(in_channels: int, out_channels: int) -> nn.Conv3d:
    """A 4x4x4 convolution that halves the resolution."""
    return nn.Conv3d(in_channels, out_channels, 4, stride=2, padding=1)


class Discriminator(nn.Module):
    """Strided convolutions and one decision per crop or per region of it, as a logit: above 0 means labeled.

    Every level halves the resolution and has twice the channels of the one before, LeakyReLU (0.2) and, except for the
    last, channel-wise dropout; no normalisation.

    - SASSNet's: four levels over the map and the image, whose first convolutions are added; a global mean and a linear
      layer decide about the crop. With one map, one image channel and 64 filters it has 11,019,777 parameters; with
      those of the V-Net the 20.46 million of DTC's Table 2. Two deviations from the authors' program: its pooling fits
      one patch size, and it decides by a softmax of two logits, of which only the difference matters.
    - DAN's: three levels over the map alone; a fourth convolution of stride 2 decides about every 16x16x16 voxels. With
      one map and 64 filters it has 2,642,369 parameters; with those of the V-Net the 12.09 million of DTC's Table 2,
      from which its size was inferred.

    Args:
        num_classes: maps, one per foreground class.
        image_channels: channels of the image that is shown with the maps; 0 to show the maps alone.
        base_filters: channels of the first level.
        levels: convolutions that halve the resolution.
        per_region: decide by a convolution about each region instead of by a linear layer about the crop.
        dropout: probability of dropping a channel.
    """

    def __init__(
        self,
        num_classes: int = 1,
        image_channels: int = 0,
        base_filters: int = 64,
        *,
        levels: int = 4,
        per_region: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        channels = [base_filters * 2**level for level in range(levels)]
        self.map_convolution = halving(num_classes, channels[0])
        self.image_convolution = halving(image_channels, channels[0]) if image_channels else None
        layers: list[nn.Module] = []
        for fine, coarse in zip(channels[:-1], channels[1:]):
            layers += [nn.LeakyReLU(SLOPE), nn.Dropout3d(float(dropout)), halving(fine, coarse)]
        layers.append(nn.LeakyReLU(SLOPE))
        self.layers = nn.Sequential(*layers)
        # Of a region, or of the crop.
        self.decision: nn.Module = (
            halving(channels[-1], 1)
            if per_region
            else nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels[-1], 1))
        )

    def forward(self, maps: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The decisions as logits, above 0 for labeled.

        Args:
            maps: (B, num_classes, H, W, D), probabilities or signed distances; extents of at least 16.
            image: (B, channels, H, W, D); not looked at where ``image_channels`` is 0.

        Returns:
            (B, 1), or (B, 1, H / 16, W / 16, D / 16) for three levels and one decision per region.
        """
        features = self.map_convolution(maps)
        if self.image_convolution is not None:
            features = features + self.image_convolution(image)
        return self.decision(self.layers(features))
