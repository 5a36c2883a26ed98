"""Mean teacher: the student agrees with its own moving average on unlabeled crops (Tarvainen and Valpola)."""

from __future__ import annotations

import torch

from scripts.networks.heads import segmentation_heads

from .distributions import log_distributions, squared_difference
from .losses import segmentation_loss, total
from .teacher import TeacherObjective


class MeanTeacherObjective(TeacherObjective):
    """L_seg on the labeled crops and the squared difference to the teacher's probabilities on the unlabeled ones.

    Terms, summed over the network's segmentation heads:

    ======================= ============================================ =========
    name                    value                                        crops
    ======================= ============================================ =========
    supervised_segmentation L_seg(Y^, Y)                                 labeled
    consistency             mean (p - p_teacher)^2, over all maps        unlabeled
    ======================= ============================================ =========

    The teacher is run on the unlabeled crops alone, with noise on its input, and receives no gradient. A batch without
    unlabeled crops has no consistency.
    """

    TERMS = ("supervised_segmentation", "consistency")

    def further_heads(
        self, heads: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        unlabeled = targets["image"][len(targets["label"]) :]
        if not self.active("consistency") or len(unlabeled) == 0:
            return {}
        taught = segmentation_heads(self.teach(unlabeled))
        return {f"teacher_{name}": head for name, head in taught.items()}

    def terms(self, heads: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        label, students = targets["label"], segmentation_heads(heads)
        terms, labeled = {}, len(label)
        if self.active("supervised_segmentation"):
            losses = [segmentation_loss(head[:labeled], label, targets.get("known")) for head in students.values()]
            terms["supervised_segmentation"] = total(losses)
        if any(name.startswith("teacher_") for name in heads):
            terms["consistency"] = total(
                self._consistency(name, head[labeled:], heads) for name, head in students.items()
            )
        return terms

    def _consistency(self, name: str, student: torch.Tensor, heads: dict[str, torch.Tensor]) -> torch.Tensor:
        """The term for one head of the student on the unlabeled crops, (U, maps, H, W, D)."""
        return self._errors(name, student, heads).mean()

    def _errors(self, name: str, student: torch.Tensor, heads: dict[str, torch.Tensor]) -> torch.Tensor:
        """Squared differences to the teacher's probabilities, (U, G, M, H, W, D)."""
        classes = self.label_coding.num_classes
        taught = log_distributions(heads[f"teacher_{name}"], classes)
        return squared_difference(log_distributions(student, classes), taught)
