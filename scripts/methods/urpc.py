"""URPC: predictions at several scales agree with their mean, less where they disagree anyway (Luo et al.)."""

import math

import torch

from scripts.errors import UserError
from scripts.networks.heads import segmentation_heads

from .distributions import log_distributions, squared_difference
from .objective import Objective, Tensors
from .reduction import mean_over_ranks


class URPCObjective(Objective):
    """Deep supervision on the labeled crops and uncertainty-rectified pyramid consistency on the unlabeled ones.

    With p_s the prediction of scale s at full resolution, p their mean over the scales, and D_s = KL(p || p_s) per
    voxel, the uncertainty of scale s:

    ======================= ================================================================= =========
    name                    value, mean over the scales                                       crops
    ======================= ================================================================= =========
    supervised_segmentation L_seg(p_s, Y)                                                     labeled
    consistency             sum (p - p_s)^2 exp(-D_s) / sum exp(-D_s), mean over the maps     unlabeled
    uncertainty             mean D_s                                                          unlabeled
    ======================= ================================================================= =========

    The last two are the two summands of one loss in the authors' program. Nothing is detached there or here: p moves
    towards the scales and exp(-D_s) is trained, too, which `uncertainty` keeps from growing.

    Raises:
        UserError: on the first call, when the network lacks the segmentation head of full resolution or another one.
    """

    TERMS = ("supervised_segmentation", "consistency", "uncertainty")

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        label, logits = targets["label"], list(segmentation_heads(heads).values())
        if len(logits) < 2 or "logits" not in heads:
            raise UserError(
                "URPC needs a segmentation head called 'logits' and ones of coarser scales called 'logits_...', and "
                f"the network has {sorted(heads)}: use scripts.networks.PyramidVNet."
            )
        labeled, terms = len(label), self.supervision(heads, targets, mean=True)
        if self.active("consistency", "uncertainty") and len(logits[0]) > labeled:
            scales = torch.stack([log_distributions(head[labeled:], label.shape[1]) for head in logits])
            terms.update(self._pyramid_consistency(scales))
        return terms

    def _pyramid_consistency(self, scales: torch.Tensor) -> Tensors:
        """Consistency and uncertainty from the log-probabilities (S, U, G, M, H, W, D) of S scales."""
        mean = torch.logsumexp(scales, dim=0) - math.log(len(scales))
        divergence = (mean.exp() * (mean - scales)).sum(3, keepdim=True)
        terms = {}
        if self.active("consistency"):
            certainty = torch.exp(-divergence)
            # One quotient per scale, so that a scale that is uncertain everywhere counts as much as the others.
            axes = tuple(range(1, scales.dim()))
            errors = (squared_difference(scales, mean) * certainty).mean(axes)
            errors, certainty = mean_over_ranks(errors, certainty.mean(axes))
            terms["consistency"] = (errors / certainty.clamp(min=1e-8)).mean()
        if self.active("uncertainty"):
            terms["uncertainty"] = divergence.mean()
        return terms
