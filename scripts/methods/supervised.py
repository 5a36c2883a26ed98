"""Labels only: the segmentation loss on the labeled crops, the baseline of every comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.errors import UserError

from .mixing import box_of_share, pasted_labeled
from .objective import Objective, Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding


class SupervisedObjective(Objective):
    """Dice and cross-entropy of every segmentation head on the labeled crops; distance heads and unlabeled crops, none.

    Works for every network whose segmentation heads are called ``logits`` or ``logits_<decoder>``.

    Args:
        copy_paste: side of the box of another labeled crop that is pasted into every crop, as a share of the crop's
            side, below 1; 0 pastes nothing. BCP's first stage, 2/3, is this augmentation.

    Raises:
        UserError: when ``copy_paste`` is out of range.
    """

    TERMS = ("supervised_segmentation",)

    def __init__(self, label_coding: LabelCoding, weights: Weights = None, *, copy_paste: float = 0.0) -> None:
        super().__init__(label_coding, weights)
        if not 0 <= copy_paste < 1:
            raise UserError(f"copy_paste is {copy_paste}; it is a share of the crop's side, at least 0 and below 1.")
        self.copy_paste = copy_paste

    def views(self, labeled: Tensors, unlabeled: Tensors, iteration: int) -> Tensors:
        if not self.copy_paste:
            return super().views(labeled, unlabeled, iteration)
        image = labeled["image"]
        return pasted_labeled(labeled, box_of_share(image.shape[2:], self.copy_paste, image.device))

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        return self.supervision(heads, targets)
