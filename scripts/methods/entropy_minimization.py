"""Entropy minimisation: labels, and confident predictions everywhere (Grandvalet and Bengio; Vu et al., Advent)."""

from scripts.networks.heads import segmentation_heads

from .distributions import log_distributions, normalized_entropy
from .losses import total
from .objective import Objective, Tensors


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

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        terms = self.supervision(heads, targets)
        if self.active("entropy"):
            logits, classes = segmentation_heads(heads).values(), targets["label"].shape[1]
            entropies = [normalized_entropy(log_distributions(head, classes)) for head in logits]
            terms["entropy"] = total(entropy.mean() for entropy in entropies)
        return terms
