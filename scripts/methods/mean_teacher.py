"""Mean teacher: the student agrees with its own moving average on unlabeled crops (Tarvainen and Valpola)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scripts.errors import UserError
from scripts.networks.heads import segmentation_heads

from .distributions import log_distributions, squared_difference
from .losses import total
from .objective import Objective, Tensors, Weights
from .teacher import EMATeacher

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.networks import Network

NOISE_LIMIT = 2.0  # in standard deviations: the papers clip N(0, 0.1^2) at 0.2


class MeanTeacherObjective(Objective):
    """L_seg on the labeled crops and the squared difference to the teacher's probabilities on the unlabeled ones.

    Terms, summed over the network's segmentation heads:

    ======================= ============================================ =========
    name                    value                                        crops
    ======================= ============================================ =========
    supervised_segmentation L_seg(Y^, Y)                                 labeled
    consistency             mean (p - p_teacher)^2, over all maps        unlabeled
    ======================= ============================================ =========

    The teacher is run on the unlabeled crops only, with noise on its input, and receives no gradient. A batch without
    unlabeled crops has no consistency. After each step its weights, and no buffers, follow the student's
    (:class:`~.teacher.EMATeacher`). It stays in training mode, as in the authors' programs: dropout is on, and
    BatchNorm normalises by the statistics of the teacher's own batch, which ignite's EMAHandler and torch's
    AveragedModel are not made for. ``state_dict`` holds the teacher and not the student.

    Args:
        network: the student.
        ema_decay: the largest share that the teacher keeps of itself in a step, in [0, 1).
        noise: standard deviation of the Gaussian noise on the teacher's input, in the unit of the normalised image;
            clipped at twice that.
        options: ``dice_background`` of :class:`~scripts.methods.Objective`.

    Raises:
        UserError: when ``ema_decay`` or ``noise`` is out of range.
    """

    TERMS = ("supervised_segmentation", "consistency")

    def __init__(
        self,
        label_coding: LabelCoding,
        network: Network,
        weights: Weights = None,
        *,
        ema_decay: float = 0.99,
        noise: float = 0.1,
        **options: bool,
    ) -> None:
        super().__init__(label_coding, weights, **options)
        if noise < 0:
            raise UserError(f"noise is {noise}; a standard deviation is 0 or more.")
        self.teacher = EMATeacher(network, decay=ema_decay, buffers=False)
        self.noise = noise

    @torch.no_grad()
    def teach(self, image: torch.Tensor) -> Tensors:
        """The teacher's heads on ``image`` (B, channels, H, W, D) with fresh noise on it and fresh dropout."""
        teacher = self.teacher.network.train()
        noise = (torch.randn_like(image) * self.noise).clamp(-NOISE_LIMIT * self.noise, NOISE_LIMIT * self.noise)
        return teacher.forward_heads(image + noise)

    def after_step(self, iteration: int) -> None:
        self.teacher.update(iteration)

    def further_heads(self, heads: Tensors, targets: Tensors) -> Tensors:
        unlabeled = targets["image"][len(targets["label"]) :]
        if not self.active("consistency") or len(unlabeled) == 0:
            return {}
        taught = segmentation_heads(self.teach(unlabeled))
        return {f"teacher_{name}": head for name, head in taught.items()}

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        labeled, terms = len(targets["label"]), self.supervision(heads, targets)
        if any(name.startswith("teacher_") for name in heads):
            terms["consistency"] = total(
                self._consistency(name, head[labeled:], heads) for name, head in segmentation_heads(heads).items()
            )
        return terms

    def _consistency(self, name: str, student: torch.Tensor, heads: Tensors) -> torch.Tensor:
        """The term for one head of the student on the unlabeled crops, (U, maps, H, W, D)."""
        return self._errors(name, student, heads).mean()

    def _errors(self, name: str, student: torch.Tensor, heads: Tensors) -> torch.Tensor:
        """Squared differences to the teacher's probabilities, (U, G, M, H, W, D)."""
        classes = self.label_coding.num_classes
        taught = log_distributions(heads[f"teacher_{name}"], classes)
        return squared_difference(log_distributions(student, classes), taught)
