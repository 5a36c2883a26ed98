"""BCP: bidirectional copy-paste between labeled and unlabeled crops (Bai et al., CVPR 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from scripts.networks.heads import segmentation_heads

from .losses import segmentation_loss, total
from .mixing import CopyPaste
from .objective import Objective, Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.networks import Network


class BCPObjective(Objective):
    """L_seg of every segmentation head on mixed crops, over the voxels of true labels and of pseudo-labels apart.

    ========================= ============================================= =====================
    term                      value, summed over the segmentation heads     voxels
    ========================= ============================================= =====================
    supervised_segmentation   (Dice + CE) / 2                               with a true label
    mixed_pseudo              (Dice + CE) / 2                               with a pseudo-label
    ========================= ============================================= =====================

    The crops and the teacher are those of :class:`~scripts.methods.mixing.CopyPaste`. The paper's weights are 1 and
    0.5 throughout. Its Dice is linear in the denominator and includes the background; here it is that of
    :func:`~scripts.methods.losses.dice_loss`, as for every other method.

    Args:
        network: the student.
        options: of :class:`~scripts.methods.mixing.CopyPaste`.
    """

    TERMS = ("supervised_segmentation", "mixed_pseudo")
    MEASURES = ("pseudo_foreground",)

    def __init__(self, label_coding: LabelCoding, network: Network, weights: Weights = None, **options: Any) -> None:
        super().__init__(label_coding, weights)
        self.copy_paste = CopyPaste(label_coding, network, **options)

    def views(self, labeled: Tensors, unlabeled: Tensors, iteration: int) -> Tensors:
        return self.copy_paste.views(labeled, unlabeled, iteration)

    def pictured(self, targets: Tensors) -> dict[str, tuple[int, torch.Tensor | None]]:
        return self.copy_paste.pictured(targets)

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        mask = targets["mixed_label"]
        self.measures["pseudo_foreground"] = (mask * targets["from_pseudo_label"]).mean()
        regions = {"supervised_segmentation": targets["from_label"], "mixed_pseudo": targets["from_pseudo_label"]}
        return {
            term: total(segmentation_loss(head, mask, region) for head in segmentation_heads(heads).values())
            for term, region in regions.items()
            if self.active(term)
        }

    def after_step(self, iteration: int) -> None:
        self.copy_paste.teacher.update(iteration)
