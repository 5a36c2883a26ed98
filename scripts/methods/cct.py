"""CCT: auxiliary decoders that see perturbed features agree with the main one (Ouali et al., Cross-Consistency)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.errors import UserError
from scripts.networks.heads import segmentation_heads

from .distributions import log_distributions, squared_difference
from .losses import total
from .objective import Objective, Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding

MAIN = "logits"


class CCTObjective(Objective):
    """L_seg of all decoders on the labeled crops; on the unlabeled ones, the auxiliary decoders against the main one.

    ======================= =================================================== =========
    name                    value                                               crops
    ======================= =================================================== =========
    supervised_segmentation mean of L_seg(Y^, Y) over all decoders              labeled
    consistency             mean of (p_a - p_main)^2 over auxiliary decoders a  unlabeled
    ======================= =================================================== =========

    Args:
        detach_main: whether the main decoder is a target only, so that the consistency trains the encoder and the
            auxiliary decoders and not the main one (Ouali et al., section 3). False lets the gradient through
            both sides, as the benchmark's 2D program does.
        options: ``dice_background`` of :class:`~scripts.methods.Objective`.

    Raises:
        UserError: on the first call, when the network has no main or no auxiliary segmentation head.
    """

    TERMS = ("supervised_segmentation", "consistency")

    def __init__(
        self, label_coding: LabelCoding, weights: Weights = None, *, detach_main: bool = True, **options: bool
    ) -> None:
        super().__init__(label_coding, weights, **options)
        self.detach_main = detach_main

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        label, logits = targets["label"], segmentation_heads(heads)
        if MAIN not in logits or len(logits) < 2:
            raise UserError(
                f"CCT needs a main segmentation head called {MAIN!r} and auxiliary ones called '{MAIN}_...', and the "
                f"network has {sorted(logits)}: use scripts.networks.CrossConsistencyVNet."
            )
        labeled, classes = label.shape[:2]
        terms = self.supervision(heads, targets, mean=True)
        if self.active("consistency") and len(logits[MAIN]) > labeled:
            unlabeled = {name: log_distributions(head[labeled:], classes) for name, head in logits.items()}
            main = unlabeled.pop(MAIN)
            if self.detach_main:
                main = main.detach()
            errors = [squared_difference(auxiliary, main).mean() for auxiliary in unlabeled.values()]
            terms["consistency"] = total(errors) / len(errors)
        return terms
