"""DTC: consistency between a segmentation head and a distance head on one decoder (Luo et al., Eq. 4-7).

    L_total = L_Seg + L_LSF + lambda_d(t) L_DTC

What the paper calls level set function (LSF) is the signed distance map here. Each summand is a term; where the paper
and the authors' program differ, the default follows the program, whose results the tables report.
"""

import torch.nn.functional as F

from scripts.networks.heads import foreground_probability

from .dual_task import DualTaskObjective, distance_loss
from .losses import dice_loss
from .objective import Tensors


class DTCObjective(DualTaskObjective):
    """The objective of DTC over the heads ``logits`` (p after the sigmoid) and ``distance`` (z) of a V-Net.

    =========================== ================================ ======== =======
    name                        value                            equation crops
    =========================== ================================ ======== =======
    supervised_segmentation     Dice(p, Y)                       5        labeled
    supervised_distance         mean (z - T(Y))^2                6        labeled
    consistency                 mean (sigma(-k z) - p)^2         4        all
    =========================== ================================ ======== =======

    No side of the consistency is detached. Deviations from the paper, all after the authors' program:

    - Eq. 2 prints sigma(+k z) for a map that is negative inside, which is the background; the sign here is minus.
    - Dice has squares in its denominator and is joint over the labeled crops; Eq. 5 has none and is per image.
    - T(Y) is divided by its largest value, outside and inside separately; Eq. 1 gives it in voxels.
    - The squared norms of Eq. 4 and 6 are means over the voxels.
    - The weight of supervised_distance is 0.3 in ``configs/methods/dtc.json``; Eq. 7 has 1.

    Args: see :class:`~scripts.methods.dual_task.DualTaskObjective`; its R is T(Y) and its T_r2s is sigma(-k z).
    """

    TERMS = ("supervised_segmentation", "supervised_distance", "consistency")

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        label = targets["label"]
        labeled, num_classes = label.shape[:2]
        terms = {}
        if self.active("supervised_segmentation"):
            probability = foreground_probability(heads["logits"][:labeled], num_classes)
            terms["supervised_segmentation"] = dice_loss(probability, label, targets.get("known"))
        if self.active("supervised_distance"):
            terms["supervised_distance"] = distance_loss(heads["distance"], targets, self.segmentation_to_distance)
        if self.active("consistency"):
            probability = foreground_probability(heads["logits"], num_classes)
            terms["consistency"] = F.mse_loss(self.distance_to_segmentation(heads["distance"]), probability)
        return terms
