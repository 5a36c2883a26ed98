"""AD-MT: two mean teachers that take turns, and teach by the mask on which they agree (Zhao et al., ECCV 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from scripts.errors import UserError
from scripts.networks.heads import segmentation_heads

from .distributions import log_distributions, normalized_entropy
from .losses import masked_mean, total
from .mixing import next_crops, paste, random_box
from .objective import Objective, Tensors, Weights
from .teacher import EMATeacher

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.networks import Network


class ADMTObjective(Objective):
    """The labels; and of the unlabeled crops a view of either kind, under the teachers' confident distribution.

    One of the two teachers is active for a random number of iterations, 1 to ``longest_turn``; the active one follows
    the student, the other stands still. While the first is active the student sees the unlabeled crops with changed
    intensities; while the second is, with a box of the next crop (sides sqrt(1 - x) of the crop's, x of Beta(4, 4)).

    The target of a voxel is the teachers' mean, weighted by exp(-entropy); where their masks differ and the student is
    surer than both, it is the student's own. Terms: supervised_segmentation, (Dice + CE) / 2 on the labeled crops;
    pseudo, the cross-entropy against the target's most probable outcome where its probability is ``confidence`` or
    more. Both are sums over the segmentation heads.

    The program compares the student's map of the mixed crop with the unmixed target; here both are mixed. Its teachers
    are updated by min(1 - 1/(t - 39), 0.99), here as every mean teacher of the project.

    Args:
        network: the student.
        augmentation: of the intensities, (B, channels, H, W, D) to the same.
        seed: of the turns, which every process of a run has to take alike.
        longest_turn: iterations; the paper's is half a pass over the unlabeled crops.
        confidence: smallest probability that teaches, in [0, 1).
        ema_decay: of the teachers.
    """

    TERMS = ("supervised_segmentation", "pseudo")
    MEASURES = ("confident_share",)

    def __init__(
        self,
        label_coding: LabelCoding,
        network: Network,
        augmentation: Callable[[torch.Tensor], torch.Tensor],
        weights: Weights = None,
        *,
        seed: int = 0,
        longest_turn: int = 20,
        confidence: float = 0.8,
        ema_decay: float = 0.99,
    ) -> None:
        super().__init__(label_coding, weights)
        if longest_turn < 1:
            raise UserError(f"longest_turn is {longest_turn}; a teacher is active for one iteration at least.")
        if not 0 <= confidence < 1:
            raise UserError(f"confidence is {confidence}; it is a probability, at least 0 and below 1.")
        self.teachers = nn.ModuleList(EMATeacher(network, decay=ema_decay) for _ in range(2))
        self.augmentation = augmentation
        self.seed = seed
        self.longest_turn = longest_turn
        self.confidence = confidence
        # Which teacher is active, and from which iteration on the other one is. On the CPU: it is asked every time.
        self._turn = [1, 0]

    def get_extra_state(self) -> dict[str, list[int]]:
        return {"turn": list(self._turn)}

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        self._turn = list(state["turn"])

    def active_teacher(self, iteration: int) -> int:
        """0 or 1. Called with rising iterations; the lengths of the turns depend on the seed and where they start."""
        while iteration >= self._turn[1]:
            length = np.random.default_rng([self.seed, self._turn[1]]).integers(1, self.longest_turn + 1)
            self._turn = [1 - self._turn[0], self._turn[1] + int(length)]
        return self._turn[0]

    @torch.no_grad()
    def views(self, labeled: Tensors, unlabeled: Tensors, iteration: int) -> Tensors:
        image = unlabeled["image"]
        if len(image) == 0 or not self.active("pseudo"):
            return dict(labeled)
        taught = [self._log_distributions(teacher.forward_heads(image)) for teacher in self.teachers]  # type: ignore[operator]
        if self.active_teacher(iteration) == 0:
            view = self.augmentation(image)
        else:
            share = float(np.sqrt(1 - np.random.default_rng([self.seed, iteration, 1]).beta(4, 4)))
            box = random_box(image.shape[2:], [int(extent * share) for extent in image.shape[2:]], image.device)
            view = paste(image, next_crops(image), box)
            taught = [paste(one, next_crops(one), box[:, None]) for one in taught]
        return {**labeled, "taught": torch.stack(taught), "image": torch.cat([labeled["image"], view])}

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        labeled, students = len(targets["label"]), segmentation_heads(heads)
        terms = self.supervision(heads, targets)
        if "taught" in targets:
            unlabeled = {name: head[labeled:] for name, head in students.items()}
            with torch.no_grad():
                target = self.target(targets["taught"], self._log_distributions(unlabeled))
            confident = target.amax(2) >= self.confidence
            outcome = target.argmax(2, keepdim=True)
            self.measures["confident_share"] = confident.float().mean()
            predicted = [log_distributions(head, self.label_coding.num_classes) for head in unlabeled.values()]
            losses = [masked_mean(-one.gather(2, outcome).squeeze(2), confident) for one in predicted]
            terms["pseudo"] = total(losses)
        return terms

    def target(self, taught: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """The distribution that teaches, (U, G, M, H, W, D).

        Args:
            taught: log-distributions of the two teachers, (2, U, G, M, H, W, D).
            student: those of the student, (U, G, M, H, W, D).
        """
        entropy = torch.stack([normalized_entropy(one) for one in (*taught, student)])
        weights = F.softmax(-entropy[:2], dim=0)
        mean = (weights * taught.exp()).sum(0)
        differ = taught[0].argmax(2, keepdim=True) != taught[1].argmax(2, keepdim=True)
        surer = entropy[2] < entropy[:2].amin(0)
        return torch.where(differ & surer, student.exp(), mean)

    def after_step(self, iteration: int) -> None:
        self.teachers[self.active_teacher(iteration)].update(iteration)  # type: ignore[operator]

    def _log_distributions(self, heads: Tensors) -> torch.Tensor:
        """Logarithm of the heads' mean distribution, (U, G, M, H, W, D)."""
        classes = self.label_coding.num_classes
        distributions = [log_distributions(head.float(), classes) for head in segmentation_heads(heads).values()]
        return torch.stack(distributions).logsumexp(0) - float(np.log(len(distributions)))
