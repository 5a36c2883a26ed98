"""SASSNet: a distance head, and a discriminator over distance map and image (Li, Zhang and He, MICCAI 2020).

L = L_seg + alpha L_sdm + beta(t) L_adv
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from scripts.networks.heads import foreground_probability

from .adversary import AdversarialObjective
from .dual_task import distance_loss
from .losses import dice_loss
from .objective import Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.distance import SegmentationToDistance
    from scripts.networks import Network


class SASSNetObjective(AdversarialObjective):
    """The objective of SASSNet over the heads ``logits`` (p after the sigmoid) and ``distance`` (z) of a V-Net.

    ======================= =============================== =========
    name                    value                           crops
    ======================= =============================== =========
    supervised_segmentation Dice(p, Y)                      labeled
    supervised_distance     mean (z - R)^2                  labeled
    adversarial             CE(D(z, image), "labeled")      unlabeled
    ======================= =============================== =========

    The weights in ``configs/methods/sassnet.json``, 1, 0.3 and 0.01 times the ramp, are those of the authors' program
    for 16 labeled scans (0.015 for 8). Deviations from it: the reference map R is this project's, per patch; D's
    decision is one logit (see :class:`~scripts.networks.Discriminator`).

    Args:
        network: see :class:`~scripts.methods.adversary.AdversarialObjective`.
        discriminator: D, over the distance maps and the image.
        discriminator_optimizer: over D's parameters.
        segmentation_to_distance: makes the reference maps R unless the data bring a "distance".
    """

    TERMS = ("supervised_segmentation", "supervised_distance", "adversarial")

    def __init__(
        self,
        label_coding: LabelCoding,
        network: Network,
        discriminator: nn.Module,
        discriminator_optimizer: Optimizer,
        segmentation_to_distance: SegmentationToDistance,
        weights: Weights = None,
    ) -> None:
        super().__init__(label_coding, network, discriminator, discriminator_optimizer, weights)
        self.segmentation_to_distance = segmentation_to_distance

    def judged_maps(self, heads: Tensors) -> torch.Tensor:
        return heads["distance"]

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        label = targets["label"]
        terms = self.adversarial_term(heads)
        if self.active("supervised_segmentation"):
            probability = foreground_probability(heads["logits"][: len(label)], label.shape[1])
            terms["supervised_segmentation"] = dice_loss(probability, label, targets.get("known"))
        if self.active("supervised_distance"):
            terms["supervised_distance"] = distance_loss(heads["distance"], targets, self.segmentation_to_distance)
        return terms
