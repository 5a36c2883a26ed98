"""UniMatch: strong views and perturbed features that agree with the confident mask of the weak view (Yang et al.)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from monai.networks import eval_mode
from torch import nn

from scripts.errors import UserError
from scripts.networks.heads import foreground_probability, segmentation_heads

from .distributions import log_distributions
from .losses import dice_loss, total
from .mixing import checked_volume, cut_mix_box, mean_probability, paste
from .objective import Objective, Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.networks import Network

STRONG_VIEWS = 2


class UniMatchObjective(Objective):
    """The labels; and of the unlabeled crops two strong views and one of perturbed features, under one's own mask.

    The first half of the unlabeled batch is what is learned from, the second half is mixed in. The network labels both
    by their weak views; a voxel whose confidence is below ``confidence`` is left out. A strong view is
    ``augmentation`` of the crop and, with probability 1/2, CutMix with an augmented crop of the second half; its target
    is mixed by the same box. For the view of perturbed features the encoder's features of the weak view lose half of
    their channels at every level.

    ======================== ================================================ =====================
    term                     value, summed over the segmentation heads        in the program
    ======================== ================================================ =====================
    supervised_segmentation  (Dice + CE) / 2 on the labeled crops             weight 1/2
    strong                   Dice on both strong views, their sum             weight 1/8
    features                 Dice on the perturbed features                   weight 1/4
    ======================== ================================================ =====================

    Where this differs from CrossMatch's program for the left atrium: its threshold is an entropy bound, (0.75 + 0.25
    r(t)) ln 2, here a number; its masks come from training mode, here from evaluation mode.

    Args:
        network: what is trained; it has ``encode`` and ``decode`` unless ``features`` is off.
        augmentation: of the strong views, (B, channels, H, W, D) to the same,
            see :class:`~scripts.data.RandomIntensity`.
        confidence: smallest probability of the predicted outcome, in [0.5, 1): below 0.5 it need not be the mask's.
        box_volume: smallest and largest share of the crop's volume in the box, uniform.
        feature_dropout: probability of dropping a channel of the features.
    """

    TERMS = ("supervised_segmentation", "strong", "features")
    MEASURES = ("confident_share",)

    def __init__(
        self,
        label_coding: LabelCoding,
        network: Network,
        augmentation: Callable[[torch.Tensor], torch.Tensor],
        weights: Weights = None,
        *,
        confidence: float = 0.8,
        box_volume: tuple[float, float] = (0.02, 0.4),
        feature_dropout: float = 0.5,
    ) -> None:
        super().__init__(label_coding, weights)
        if not 0.5 <= confidence < 1:
            raise UserError(f"confidence is {confidence}; it is a probability, at least 0.5 and below 1.")
        self._network = (network,)
        self.augmentation = augmentation
        self.confidence = confidence
        self.box_volume = checked_volume(box_volume)
        self.feature_dropout = feature_dropout
        self._perturbed: slice | None = None

    @torch.no_grad()
    def views(self, labeled: Tensors, unlabeled: Tensors, iteration: int) -> Tensors:
        image, first = labeled["image"], len(labeled["image"])
        half = (len(unlabeled["image"]) + 1) // 2
        weak, further = unlabeled["image"][:half], unlabeled["image"][half:]
        self._perturbed = slice(first, first + half) if half and self.active("features") else None
        if half == 0:
            return dict(labeled)
        (network,) = self._network
        with eval_mode(network):
            mask, confident = self.label(network.forward_heads(unlabeled["image"]))
        views, targets = [image], {"mask": mask[:half], "confident": confident[:half]}
        if self._perturbed is not None:
            views.append(weak)
        for number in range(STRONG_VIEWS if self.active("strong") else 0):
            strong, others = self.augmentation(weak), self.augmentation(further)
            target, believed = mask[:half], confident[:half]
            if len(further) and float(torch.rand(())) < 0.5:
                box = cut_mix_box(image.shape[2:], self.box_volume, image.device)
                number_in = torch.arange(half, device=image.device) % len(further)
                strong = paste(strong, others[number_in], box)
                target = paste(target, mask[half:][number_in], box)
                believed = paste(believed, confident[half:][number_in], box)
            views.append(strong)
            targets |= {f"strong_mask_{number}": target, f"strong_confident_{number}": believed}
        return {**labeled, **targets, "image": torch.cat(views)}

    def predict(self, network: nn.Module, image: torch.Tensor) -> Tensors:
        if self._perturbed is None:
            return network(image)
        encoded = network.encode(image)  # type: ignore[operator]
        return network.decode([self._drop(level) for level in encoded])  # type: ignore[operator]

    def _drop(self, features: torch.Tensor) -> torch.Tensor:
        """The features with whole channels dropped of the weak views alone."""
        assert self._perturbed is not None  # else predict goes another way
        first, last = self._perturbed.start, self._perturbed.stop
        dropped = F.dropout3d(features[first:last], self.feature_dropout)
        return torch.cat([features[:first], dropped, features[last:]])

    def label(self, heads: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """The mask of the heads' mean, (U, C, H, W, D), 0 or 1, and where it is confident, bool."""
        classes = self.label_coding.num_classes
        mask = self.label_coding.harden(mean_probability(heads, classes))
        outcomes = [log_distributions(head.float(), classes).exp() for head in segmentation_heads(heads).values()]
        certainty = torch.stack(outcomes).mean(0).amax(2)  # (U, C or 1, H, W, D)
        return mask, (certainty >= self.confidence).expand_as(mask)

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        position, students = len(targets["label"]), segmentation_heads(heads)
        terms = self.supervision(heads, targets)
        if "mask" not in targets:
            return terms
        number, classes = len(targets["mask"]), self.label_coding.num_classes
        self.measures["confident_share"] = targets["confident"].float().mean()

        def loss(start: int, mask: torch.Tensor, confident: torch.Tensor) -> torch.Tensor:
            crops = [head[start : start + number] for head in students.values()]
            return total(dice_loss(foreground_probability(head, classes), mask, confident) for head in crops)

        if self._perturbed is not None:
            terms["features"] = loss(position, targets["mask"], targets["confident"])
            position += number
        if "strong_mask_0" in targets:
            terms["strong"] = total(
                loss(position + i * number, targets[f"strong_mask_{i}"], targets[f"strong_confident_{i}"])
                for i in range(STRONG_VIEWS)
            )
        return terms
