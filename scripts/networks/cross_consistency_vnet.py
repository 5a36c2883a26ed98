"""Cross-consistency V-Net: one encoder, a main decoder, and three auxiliary ones that see perturbed features."""

from __future__ import annotations

import torch
from torch import nn

from .blocks import Decoder
from .heads import segmentation_maps
from .layers import PointwiseConv3d
from .normalization import set_normalization
from .perturbations import FeatureDrop, FeatureNoise
from .vnet import VNet


class CrossConsistencyVNet(VNet):
    """The network of CCT (Ouali et al.) on the V-Net of the semi-supervised benchmarks.

    All decoders upsample with transposed convolutions. In training mode the auxiliary ones see the features of every
    level perturbed, since the V-Net's skip connections would else carry the clean ones past the perturbation (Ouali
    et al. have no skip connections and perturb the encoder's result): relative noise of up to 0.3, channel dropout
    of 0.3, or the most active voxels dropped. With one channel and two output maps it has 15,664,776 parameters, and
    15,653,800 without those of the BatchNorms, which is what the papers' 15.65 M counts. In evaluation mode it is the
    V-Net of the main decoder.

    Args: see :class:`~scripts.networks.VNet`; a ``dropout`` of 0 does not switch the perturbations off.

    Raises:
        UserError: when ``activation`` is unknown.
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
        super().__init__(in_channels, num_classes, base_filters, activation=activation, dropout=dropout)
        maps = segmentation_maps(num_classes, activation)
        self.noise = FeatureNoise(0.3)
        self.channel_dropout = nn.Dropout3d(0.3)
        self.feature_drop = FeatureDrop()
        self.decoder_noise = Decoder(base_filters, dropout=dropout)
        self.decoder_dropout = Decoder(base_filters, dropout=dropout)
        self.decoder_feature_drop = Decoder(base_filters, dropout=dropout)
        self.segmentation_head_noise = PointwiseConv3d(base_filters, maps)
        self.segmentation_head_dropout = PointwiseConv3d(base_filters, maps)
        self.segmentation_head_feature_drop = PointwiseConv3d(base_filters, maps)
        set_normalization(self, normalization)

    @torch.jit.export
    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``logits`` of the main decoder, and of the auxiliary ones, perturbed in training mode only.

        These are called ``logits_noise``, ``logits_dropout`` and ``logits_feature_drop``, see :class:`Network`; extents
        are multiples of 16.
        """
        assert self.segmentation_head is not None  # which a V-Net may lack and this one does not
        features = self.encode(x)
        noisy = [self.noise(f) for f in features]
        thinned = [self.channel_dropout(f) for f in features]
        dropped = [self.feature_drop(f) for f in features]
        return {
            "logits": self.segmentation_head(self.decoder(features)),
            "logits_noise": self.segmentation_head_noise(self.decoder_noise(noisy)),
            "logits_dropout": self.segmentation_head_dropout(self.decoder_dropout(thinned)),
            "logits_feature_drop": self.segmentation_head_feature_drop(self.decoder_feature_drop(dropped)),
        }
