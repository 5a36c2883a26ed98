"""UA-MT: a mean teacher that is believed only where it is certain (Yu et al., Uncertainty-aware self-ensembling)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from scripts.errors import UserError
from scripts.networks.heads import segmentation_heads

from .distributions import log_distributions, normalized_entropy
from .losses import masked_mean
from .mean_teacher import MeanTeacherObjective
from .objective import Loss, Tensors, Weights
from .ramps import GaussianRampUp

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.networks import Network

FIRST_THRESHOLD = 0.75


class UAMTObjective(MeanTeacherObjective):
    """The mean teacher's terms, with the consistency averaged over the voxels on which the teacher is certain.

    The teacher makes ``passes`` stochastic predictions (dropout, noise on the input). With H the entropy of their mean,
    the mask is M = [H < (3/4 + 1/4 r(t)) ln m], r(t) = exp(-5 (1 - t/T)^2), m the number of maps of a softmax head (Yu
    et al. write ln 2 for their two) or 2 for each map of a sigmoid head, and

        consistency = sum M (p - p_teacher)^2 / (m sum M)

    with p_teacher from a further pass of its own, as in the authors' program. The threshold opens up to the largest
    possible entropy at the end of the run.

    Args:
        network: the student.
        max_iterations: T.
        passes: stochastic predictions behind the entropy; they are made one after another, which costs time and not
            memory.
        options: those of :class:`~scripts.methods.MeanTeacherObjective`.

    Raises:
        UserError: when ``passes`` is below 1.
    """

    def __init__(
        self,
        label_coding: LabelCoding,
        network: Network,
        max_iterations: int,
        weights: Weights = None,
        *,
        passes: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(label_coding, network, weights, **options)
        if passes < 1:
            raise UserError(f"passes is {passes}; the entropy needs at least one prediction of the teacher.")
        self.passes = passes
        self.threshold_ramp = GaussianRampUp(max_iterations, peak=1 - FIRST_THRESHOLD)
        self.threshold = FIRST_THRESHOLD

    def forward(self, heads: Tensors, targets: Tensors, iteration: int) -> Loss:
        # The threshold is all that depends on the iteration besides the weights; `terms` is not told it.
        self.threshold = FIRST_THRESHOLD + self.threshold_ramp(iteration)
        return super().forward(heads, targets, iteration)

    def further_heads(self, heads: Tensors, targets: Tensors) -> Tensors:
        further = super().further_heads(heads, targets)
        if not further:
            return {}
        unlabeled = targets["image"][len(targets["label"]) :]
        for _ in range(self.passes):
            for name, head in segmentation_heads(self.teach(unlabeled)).items():
                log_probability = log_distributions(head.float(), self.label_coding.num_classes)
                log_probability = log_probability - math.log(self.passes)
                name = f"log_mean_{name}"
                further[name] = torch.logaddexp(further[name], log_probability) if name in further else log_probability
        return further

    def _consistency(self, name: str, student: torch.Tensor, heads: Tensors) -> torch.Tensor:
        certain = normalized_entropy(heads[f"log_mean_{name}"]) < self.threshold
        return masked_mean(self._errors(name, student, heads), certain)
