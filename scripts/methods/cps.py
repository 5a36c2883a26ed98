"""CPS: two networks that learn from each other's masks, on mixed crops if so wished (Chen et al., CVPR 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks import eval_mode

from scripts.errors import UserError
from scripts.networks.heads import foreground_probability, segmentation_heads

from .losses import segmentation_loss
from .mixing import checked_volume, cut_mix_box, next_crops, paste
from .objective import Objective, Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.networks import Network


class CPSObjective(Objective):
    """L_seg on the labeled crops, and of every head against the other head's mask on the unlabeled ones.

    Terms: supervised_segmentation, (Dice + CE) / 2 of both heads on the labeled crops; cross_pseudo, (Dice + CE) / 2 of
    each head on the unlabeled crops against the mask of the other, which receives no gradient. The paper has CE alone
    in the second and trains it on the labeled crops, too.

    With CutMix the networks label the unlabeled crops in evaluation mode first; then every crop receives a box of the
    next one, with its masks, and is what the networks are trained on.

    Args:
        network: one with two segmentation heads that share nothing, see :class:`~scripts.networks.TwinVNet`.
        cut_mix: mix unlabeled crops.
        box_volume: smallest and largest share of the crop's volume in the box, uniform.
    """

    TERMS = ("supervised_segmentation", "cross_pseudo")

    def __init__(
        self,
        label_coding: LabelCoding,
        network: Network,
        weights: Weights = None,
        *,
        cut_mix: bool = True,
        box_volume: tuple[float, float] = (0.02, 0.4),
    ) -> None:
        super().__init__(label_coding, weights)
        self._network = (network,)
        self.cut_mix = cut_mix
        self.box_volume = checked_volume(box_volume)

    @torch.no_grad()
    def views(self, labeled: Tensors, unlabeled: Tensors, iteration: int) -> Tensors:
        image = unlabeled["image"]
        if not self.cut_mix or len(image) == 0 or not self.active("cross_pseudo"):
            return super().views(labeled, unlabeled, iteration)
        (network,) = self._network
        with eval_mode(network):
            masks = self._masks(network.forward_heads(image))
        box = cut_mix_box(image.shape[2:], self.box_volume, image.device)
        mixed = paste(image, next_crops(image), box)
        targets = {f"mask_of_{name}": paste(mask, next_crops(mask), box) for name, mask in masks.items()}
        return {**labeled, **targets, "image": torch.cat([labeled["image"], mixed])}

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        labeled, students = len(targets["label"]), segmentation_heads(heads)
        terms = self.supervision(heads, targets)
        unlabeled = {name: head[labeled:] for name, head in students.items()}
        if self.active("cross_pseudo") and len(next(iter(unlabeled.values()))):
            masks = {name: targets[f"mask_of_{name}"] for name in students if f"mask_of_{name}" in targets}
            masks = masks or self._masks({name: head.detach() for name, head in unlabeled.items()})
            if len(unlabeled) != 2:
                heads_found = ", ".join(unlabeled)
                raise UserError(f"CPS needs two segmentation heads; this network has {heads_found}: use TwinVNet.")
            first, second = unlabeled
            terms["cross_pseudo"] = segmentation_loss(unlabeled[first], masks[second]) + segmentation_loss(
                unlabeled[second], masks[first]
            )
        return terms

    def _masks(self, heads: Tensors) -> Tensors:
        """The mask of every segmentation head, (U, C, H, W, D), 0 or 1."""
        coding = self.label_coding
        return {
            name: coding.harden(foreground_probability(head.float(), coding.num_classes))
            for name, head in segmentation_heads(heads).items()
        }
