"""MC-Net: two decoders that agree with each other's sharpened predictions (Wu et al., Mutual Consistency)."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from scripts.errors import UserError
from scripts.networks.heads import segmentation_heads

from .losses import dice_loss, total
from .objective import Objective, Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding


class MCNetObjective(Objective):
    """Dice on the labeled crops and, on all crops, each decoder against the sharpened prediction of every other.

    ======================= ======================================== =======
    name                    value                                    crops
    ======================= ======================================== =======
    supervised_dice         sum_i Dice(p_i, Y)                       labeled
    mutual_consistency      sum_{i != j} MSE(p_i, sharpen(p_j))      all
    ======================= ======================================== =======

    sharpen(p) = p^(1/T) / (p^(1/T) + (1 - p)^(1/T)), which is the sigmoid of the logit over T: that form has no
    underflow. Neither side is detached, as in the authors' program; behind the sharpening a gradient is left only
    where p is near 1/2.

    Args:
        temperature: T; the smaller, the nearer the target is to a hard label.
        dice_squares: squares in the denominator of the Dice, as for every other method; the authors' program has none,
            see :func:`~scripts.methods.losses.dice_loss`.

    Raises:
        UserError: when ``temperature`` is not positive; on the first call, when the network has one segmentation head,
            or softmax heads.
    """

    TERMS = ("supervised_dice", "mutual_consistency")

    def __init__(
        self, label_coding: LabelCoding, weights: Weights = None, *, temperature: float = 0.1, dice_squares: bool = True
    ) -> None:
        super().__init__(label_coding, weights)
        if temperature <= 0:
            raise UserError(f"temperature is {temperature}; it is above 0, and 1 sharpens nothing.")
        self.temperature = temperature
        self.dice_squares = dice_squares

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        label, logits = targets["label"], segmentation_heads(heads)
        self._check(logits, label.shape[1])
        terms = {}
        if self.active("supervised_dice"):
            labeled, known = [torch.sigmoid(head[: len(label)]) for head in logits.values()], targets.get("known")
            losses = [dice_loss(p, label, known, squares=self.dice_squares) for p in labeled]
            terms["supervised_dice"] = total(losses)
        if self.active("mutual_consistency"):
            probability = [torch.sigmoid(head) for head in logits.values()]
            sharpened = [torch.sigmoid(head / self.temperature) for head in logits.values()]
            pairs = permutations(range(len(probability)), 2)
            terms["mutual_consistency"] = total(F.mse_loss(probability[i], sharpened[j]) for i, j in pairs)
        return terms

    @staticmethod
    def _check(logits: Tensors, num_classes: int) -> None:
        shapes = {name: head.shape[1] for name, head in logits.items()}
        if len(shapes) < 2 or set(shapes.values()) != {num_classes}:
            raise UserError(
                f"MC-Net needs two segmentation heads or more with {num_classes} sigmoid map(s) each and the network "
                f"has {shapes} (maps by head): use scripts.networks.DualTaskVNet."
            )
