"""Labels only: the segmentation loss on the labeled crops, the baseline of every comparison."""

from __future__ import annotations

import torch

from scripts.networks.heads import segmentation_heads

from .losses import segmentation_loss, total
from .objective import Objective


class SupervisedObjective(Objective):
    """Dice and cross-entropy of every segmentation head on the labeled crops; distance heads and unlabeled crops, none.

    Works for every network whose segmentation heads are called ``logits`` or ``logits_<decoder>``.
    """

    TERMS = ("supervised_segmentation",)

    def terms(self, heads: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.active("supervised_segmentation"):
            return {}
        label, known = targets["label"], targets.get("known")
        logits = [head[: len(label)] for head in segmentation_heads(heads).values()]
        return {"supervised_segmentation": total(segmentation_loss(head, label, known) for head in logits)}
