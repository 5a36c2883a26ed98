"""DAN: a discriminator over the segmentation maps (Zhang et al., Deep Adversarial Networks, MICCAI 2017).

L = L_seg + w(t) L_adv
"""

import torch

from scripts.networks.heads import foreground_probability

from .adversary import AdversarialObjective
from .objective import Tensors


class DANObjective(AdversarialObjective):
    """The objective of DAN over the head ``logits`` (p after the sigmoid or softmax) of a V-Net.

    ======================= =============================== =========
    name                    value                           crops
    ======================= =============================== =========
    supervised_segmentation (Dice(p, Y) + CE(p, Y)) / 2     labeled
    adversarial             CE(D(p), "labeled")             unlabeled
    ======================= =============================== =========

    By default D sees the maps only and decides region by region, the form whose size fits the papers' tables; the
    paper's and SSL4MIS's also sees the image and decides about the crop. The weights in ``configs/methods/dan.json``, 1
    and 0.1 times the ramp, are those of SSL4MIS.

    Args: see :class:`~scripts.methods.adversary.AdversarialObjective`.
    """

    TERMS = ("supervised_segmentation", "adversarial")

    def judged_maps(self, heads: Tensors) -> torch.Tensor:
        return foreground_probability(heads["logits"], self.label_coding.num_classes)

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        return {**self.supervision(heads, targets), **self.adversarial_term(heads)}
