"""Dual-task networks over MONAI's: a second decoder for DynUNet and SegResNet, two heads on each decoder."""

from __future__ import annotations

import torch
from monai.networks.blocks import UpSample
from monai.networks.nets import DynUNet, SegResNet
from torch import nn

from scripts.errors import UserError

from .blocks import UPSAMPLING_MODES
from .dual_task import DualTaskNetwork
from .normalization import monai_normalization

# nnU-Net doubles the channels at every level up to 320, which is ten times its 32 at full resolution.
LARGEST_GROWTH = 10


class MonaiEncoder(nn.Module):
    """The contracting path of a network of MONAI, with dropout at its end.

    Args:
        stem: what comes before the first level.
        levels: finest first.
        dropout: probability of dropping a channel of the bottleneck.
    """

    def __init__(self, stem: nn.Module, levels: nn.ModuleList, *, dropout: float) -> None:
        super().__init__()
        self.stem = stem
        self.levels = levels
        self.factor = 2 ** (len(levels) - 1)
        self.instance = any(isinstance(module, nn.InstanceNorm3d) for module in levels.modules())
        self.dropout = nn.Dropout3d(float(dropout))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The features of every level, finest first.

        Raises:
            UserError: when the coarsest level would be one voxel, whose instance normalisation is undefined.
        """
        if self.instance and x.shape[2] * x.shape[3] * x.shape[4] <= self.factor**3:
            raise UserError(
                f"the input has extents {list(x.shape[2:])}, one voxel at the coarsest level, and instance "
                f"normalisation needs more: choose a patch_size with at least one extent of {2 * self.factor}."
            )
        x = self.stem(x)
        features: list[torch.Tensor] = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        features[-1] = self.dropout(features[-1])
        return features


class DynUNetDecoder(nn.Module):
    """The expanding path of a DynUNet without its output block, with dropout at its end.

    Args:
        network: gives its blocks away.
        upsampling_mode: "transposed" as in nnU-Net, or "trilinear" for a 1x1x1 convolution and interpolation.
        dropout: probability of dropping a channel of the result, right before the heads.
    """

    def __init__(self, network: DynUNet, *, upsampling_mode: str, dropout: float) -> None:
        super().__init__()
        self.levels = network.upsamples
        if upsampling_mode == "trilinear":
            for level, coarse, fine in zip(self.levels, network.filters[:0:-1], network.filters[-2::-1]):
                level.transp_conv = UpSample(3, coarse, fine, 2, mode="nontrainable", align_corners=False)
        self.dropout = nn.Dropout3d(float(dropout))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Full-resolution features (B, base_filters, H, W, D) from the encoder's ``features``."""
        x = features[-1]
        skip = len(features) - 2
        for level in self.levels:
            x = level(x, features[skip])
            skip -= 1
        return self.dropout(x)


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
        self.dropout = nn.Dropout3d(float(dropout))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Full-resolution features (B, base_filters, H, W, D) from the encoder's ``features``."""
        x = features[-1]
        skip = len(features) - 2
        for up, level in zip(self.upsamplings, self.levels):
            x = level(up(x) + features[skip])
            skip -= 1
        return self.dropout(self.normalization(x))


class DualTaskDynUNet(DualTaskNetwork):
    """DBiSL over nnU-Net's architecture (Li, Table 12), made of the blocks of ``monai.networks.nets.DynUNet``.

    Decoder phi upsamples with transposed convolutions, decoder psi with a 1x1x1 convolution and trilinear
    interpolation. The paper's 48.36 million parameters are those of six levels, 32 filters and transposed convolutions
    in both decoders (48,355,940); by default the decoders differ, as they do in the V-Net, and five levels take every
    patch that the V-Net takes but 16x16x16.

    Args: see :class:`~scripts.networks.VNet`. Every head has one output map per class. Others:
        base_filters: channels at full resolution; nnU-Net uses 32. They double up to ten times that.
        levels: resolutions, at least 3; the extents of the image are multiples of 2**(levels - 1).
        upsampling_psi: "trilinear" or "transposed".
        normalization: "instance", as in nnU-Net, "batch" or "group".
        dropout: as in the V-Net; nnU-Net has none.

    Raises:
        UserError: when ``levels`` is below 3, or ``upsampling_psi`` or ``normalization`` is unknown.

    Example:
        >>> network = DualTaskDynUNet(base_filters=4).eval()
        >>> network(torch.zeros(1, 1, 32, 32, 16)).shape
        torch.Size([1, 1, 32, 32, 16])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        base_filters: int = 32,
        *,
        levels: int = 5,
        upsampling_psi: str = "trilinear",
        normalization: str = "instance",
        dropout: float = 0.5,
    ) -> None:
        if levels < 3:
            raise UserError(f"levels is {levels}; a DynUNet has at least 3.")
        if upsampling_psi not in UPSAMPLING_MODES:
            raise UserError(
                f"upsampling_psi is {upsampling_psi!r}; an upsampling is one of {', '.join(UPSAMPLING_MODES)}."
            )

        def whole_network() -> DynUNet:
            return DynUNet(
                spatial_dims=3,
                in_channels=in_channels,
                out_channels=num_classes,
                kernel_size=[3] * levels,
                strides=[1] + [2] * (levels - 1),
                upsample_kernel_size=[2] * (levels - 1),
                filters=[base_filters * min(2**level, LARGEST_GROWTH) for level in range(levels)],
                norm_name=monai_normalization(normalization, base_filters),
            )

        first = whole_network()
        path = nn.ModuleList([first.input_block, *first.downsamples, first.bottleneck])
        super().__init__(
            MonaiEncoder(nn.Identity(), path, dropout=dropout),
            DynUNetDecoder(first, upsampling_mode="transposed", dropout=dropout),
            DynUNetDecoder(whole_network(), upsampling_mode=upsampling_psi, dropout=dropout),
            in_channels=in_channels,
            num_classes=num_classes,
            channels=base_filters,
            factor=2 ** (levels - 1),
        )


class DualTaskSegResNet(DualTaskNetwork):
    """DBiSL over the blocks of ``monai.networks.nets.SegResNet`` with its default depth.

    Both decoders put a 1x1x1 convolution before the upsampling: phi's is a transposed convolution, psi's trilinear
    interpolation. Four levels: every extent is a multiple of 8.

    Args: see :class:`~scripts.networks.VNet`. Every head has one output map per class. Other:
        normalization: "group", as in MONAI's, "batch" or "instance"; the groups are as many as 8 and the first channels
            have in common.

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
            MonaiEncoder(first.convInit, first.down_layers, dropout=dropout),
            SegResNetDecoder(first, dropout=dropout),
            SegResNetDecoder(whole_network("nontrainable"), dropout=dropout),
            in_channels=in_channels,
            num_classes=num_classes,
            channels=base_filters,
            factor=8,
        )
