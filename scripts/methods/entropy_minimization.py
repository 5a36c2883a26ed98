"""Entropy minimisation: labels, and confident predictions everywhere (Grandvalet and Bengio; Vu et al., Advent)."""

from __future__ import annotations

import torch

from scripts.networks.heads import segmentation_heads

from .distributions import log_distributions, normalized_entropy
from .losses import segmentation_loss, total
from .objective import Objective


class EntropyMinimizationObjective(Objective):
    """L_seg on the labeled crops and the mean normalised entropy of the predictions on all crops.

    Terms, summed over the network's segmentation heads:

    ======================= ================================= =======
    name                    value                             crops
    ======================= ================================= =======
    supervised_segmentation L_seg(Y^, Y)                      labeled
    entropy                 mean(-sum p log p) / ln M         all
    ======================= ================================= =======

    M is the number of outcomes: C + 1 for a softmax head, 2 per class for a sigmoid head.
    """

    TERMS = ("supervised_segmentation", "entropy")

    def terms(self, heads: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        label, logits = targets["label"], segmentation_heads(heads).values()
        terms = {}
        if self.active("supervised_segmentation"):
            known = targets.get("known")
            losses = [segmentation_loss(head[: len(label)], label, known) for head in logits]
            terms["supervised_segmentation"] = total(losses)
        if self.active("entropy"):
            entropies = [normalized_entropy(log_distributions(head, label.shape[1])) for head in logits]
            terms["entropy"] = total(entropy.mean() for entropy in entropies)
        return terms
