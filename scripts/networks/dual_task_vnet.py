"""Dual-task V-Net: one encoder, two decoders that upsample differently, a segmentation and a distance head on each."""

from __future__ import annotations

from collections.abc import Sequence

from .blocks import Decoder, Encoder
from .dual_task import DualTaskNetwork
from .heads import TASKS
from .normalization import set_normalization


class DualTaskVNet(DualTaskNetwork):
    """The network of DBiSL (Li, section 3.1 and Figure 2).

    Decoder phi upsamples with transposed convolutions, decoder psi with trilinear interpolation and a convolution, so
    that the two see the shared features differently. The paper says "distinct upsampling strategies" without naming
    them; this pair gives its 12.35 million parameters (12,347,716 with the default arguments). Without the distance
    heads it is the network of MC-Net (12,347,682 parameters).

    Args: see :class:`~scripts.networks.VNet`. Every head has one output map per class. Others:
        tasks: the heads on each decoder, "segmentation" and, unless it is left out, "distance".
        align_corners: of decoder psi's interpolation, as in the programs of MC-Net; False is torch's default.

    Raises:
        UserError: when ``tasks`` has an unknown one or lacks "segmentation".

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
        normalization: str = "batch",
        dropout: float = 0.5,
        align_corners: bool = False,
    ) -> None:
        super().__init__(
            Encoder(in_channels, base_filters, dropout=dropout),
            Decoder(base_filters, upsampling_mode="transposed", dropout=dropout),
            Decoder(base_filters, upsampling_mode="trilinear", dropout=dropout, align_corners=align_corners),
            in_channels=in_channels,
            num_classes=num_classes,
            channels=base_filters,
            tasks=tasks,
        )
        set_normalization(self, normalization)
