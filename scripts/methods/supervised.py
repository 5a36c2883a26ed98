"""Labels only: the segmentation loss on the labeled crops, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from scripts.errors import UserError

from .mixing import box_of_share, pasted_labeled
from .objective import Objective, Weight

if TYPE_CHECKING:
    from scripts.data import LabelCoding


class SupervisedObjective(Objective):
    """Dice and cross-entropy of every segmentation head on the labeled crops; distance heads and unlabeled crops, none.

    Works for every network whose segmentation heads are called ``logits`` or ``logits_<decoder>``.

    Args:
        label_coding: see :class:`~scripts.methods.Objective`.
        weights: see :class:`~scripts.methods.Objective`.
        copy_paste: side of the box of another labeled crop that is pasted into every crop, as a share of the crop's
            side, below 1; 0 pastes nothing. BCP's first stage, 2/3, is this augmentation.

    Raises:
        UserError: when ``copy_paste`` is out of range.
    """

    TERMS = ("supervised_segmentation",)

    def __init__(
        self, label_coding: LabelCoding, weights: Mapping[str, Weight] | None = None, *, copy_paste: float = 0.0
    ) -> None:
        super().__init__(label_coding, weights)
        if not 0 <= copy_paste < 1:
            raise UserError(f"copy_paste is {copy_paste}; it is a share of the crop's side, at least 0 and below 1.")
        self.copy_paste = copy_paste

    def views(
        self, labeled: dict[str, torch.Tensor], unlabeled: dict[str, torch.Tensor], iteration: int
    ) -> dict[str, torch.Tensor]:
        if not self.copy_paste:
            return super().views(labeled, unlabeled, iteration)
        image = labeled["image"]
        return pasted_labeled(labeled, box_of_share(image.shape[2:], self.copy_paste, image.device))

    def terms(self, heads: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.supervision(heads, targets)
