"""DTML: two networks, one per task, that learn from the labels and from each other (Zhang and Zhang, Eq. 4-6).

    M_s:  L_seg  + L_con        M_d:  L_mask (or L_dis, or both) + L_con

Both minimisations are one weighted sum here: the two networks share no parameter, so that each term reaches only those
that it depends on, and one SGD over both makes the steps that one for each would.
"""

import torch.nn.functional as F

from scripts.networks.heads import foreground_probability

from .dual_task import DualTaskObjective, distance_loss
from .losses import dice_loss
from .objective import Tensors


class DTMLObjective(DualTaskObjective):
    """The objective of DTML over ``logits`` of M_s (p after the sigmoid) and ``distance`` of M_d (z).

    =========================== ================================ =============== ======== ===========
    name                        value                            in the paper    crops    network
    =========================== ================================ =============== ======== ===========
    supervised_segmentation     (Dice + cross-entropy)(p, Y) / 2 L_seg, Eq. 5    labeled  M_s
    supervised_mask             Dice(sigma(-k z), Y)             L_mask, Eq. 6   labeled  M_d
    supervised_distance         mean (z - SDM(Y))^2              L_dis, Table 1  labeled  M_d
    consistency                 mean (sigma(-k z) - p)^2         L_con, Eq. 4    all      M_s and M_d
    =========================== ================================ =============== ======== ===========

    No side of the consistency is detached. Where paper and authors' program differ, or the paper is silent:

    - Eq. 2 prints sigma(+k z) for a map that is negative inside, which is the background; the sign here is minus.
    - SDM(Y) is divided by its largest value, outside and inside separately; Eq. 1 gives it in voxels.
    - Eq. 5 and 6 contain L_con once each. In the program each of the two minimisations back-propagates it into both
      networks, so that each network receives twice its gradient. ``configs/methods/dtml.json`` has that 2 as the peak
      of the term's ramp; 1 is the reading of the paper.
    - Eq. 5 and 6 have no ramp; the program ramps L_con over the whole run, as does ``configs/methods/dtml.json``.
    - The paper gives the two parts of L_seg no weights; the program halves their sum. L_mask is Dice alone in the
      program.

    A variant of the supervision of M_d has a weight of zero for supervised_mask or supervised_distance.

    Args: see :class:`~scripts.methods.dual_task.DualTaskObjective`; its R is SDM(Y) and its T_r2s is sigma(-k z).
    """

    TERMS = ("supervised_segmentation", "supervised_mask", "supervised_distance", "consistency")

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        label, known = targets["label"], targets.get("known")
        labeled, num_classes = label.shape[:2]
        terms = self.supervision(heads, targets)
        if self.active("supervised_distance"):
            terms["supervised_distance"] = distance_loss(heads["distance"], targets, self.segmentation_to_distance)
        if self.active("supervised_mask", "consistency"):
            mask = self.distance_to_segmentation(heads["distance"])
            if self.active("supervised_mask"):
                terms["supervised_mask"] = dice_loss(mask[:labeled], label, known)
            if self.active("consistency"):
                terms["consistency"] = F.mse_loss(mask, foreground_probability(heads["logits"], num_classes))
        return terms
