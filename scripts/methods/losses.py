"""Losses: the Dice, cross-entropy and masked means that the objectives are built from.

They differ from MONAI's in what they average over: the benchmarks' Dice is joint over the labeled crops of a batch, and
MONAI's DiceCELoss takes softmax or one channel, not sigmoid channels with a soft target.

``known``, of the shape of the target, says where labels are known, voxel by voxel and class by class (docs/how_to/
partial_labels.md); None means everywhere. What is not known enters neither numerator nor denominator. Where it is a
float, it is how much a voxel counts: 1 for a true label, less for a pseudo-label, 0 for what is not known.
"""

import functools
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from scripts.networks.heads import foreground_probability

from .reduction import sum_over_ranks


def dice_loss(
    probability: torch.Tensor,
    target: torch.Tensor,
    known: torch.Tensor | None = None,
    *,
    smooth: float = 1e-5,
    squares: bool = True,
) -> torch.Tensor:
    """1 - (2 sum(p y) + s) / (sum(p^2) + sum(y^2) + s), mean over the classes; sums over all crops of all processes.

    Squares and the joint sum are those of the benchmarks' programs; DTC Eq. 5 has no squares and is per image.

    Args:
        probability: (B, C, H, W, D), [0, 1].
        target: the same shape, [0, 1].
        known: the same shape, bool or weights; the mean is over the classes that are known anywhere. None for all.
        smooth: s; a class that is absent from both costs nothing.
        squares: False leaves them out: 1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s), as in MC-Net's program.
    """
    axes = (0, *range(2, probability.dim()))
    counted = target if known is None else target * known
    intersection = (probability * counted).sum(axes)
    predicted = probability * probability if squares else probability
    counted = target * counted if squares else counted
    size = (predicted if known is None else predicted * known).sum(axes) + counted.sum(axes)
    if known is None:
        intersection, size = sum_over_ranks(intersection, size)
        return (1 - (2 * intersection + smooth) / (size + smooth)).mean()
    intersection, size, number = sum_over_ranks(intersection, size, known.sum(axes).to(size.dtype))
    losses = (1 - (2 * intersection + smooth) / (size + smooth)) * (number > 0)
    return losses.sum() / (number > 0).sum().clamp(min=1)


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy over voxels: binary per class for a sigmoid head, categorical for a softmax head.

    Args:
        logits: (B, C, H, W, D) before the sigmoid, or (B, C + 1, H, W, D) before the softmax, background first.
        target: (B, C, H, W, D), 0 or 1; for a softmax head at most one class per voxel.
        known: (B, C, H, W, D), bool or weights. A voxel of which a softmax head's label is known in part is one of
            several outcomes, and its cross-entropy is that of their sum: -log(sum of p over the outcomes that are
            possible). None for all.
    """
    if logits.shape[1] == target.shape[1]:
        if known is None:
            return F.binary_cross_entropy_with_logits(logits, target)
        return masked_mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), known)
    background = 1 - target.sum(1, keepdim=True)
    if known is None:
        return F.cross_entropy(logits, torch.cat([background, target], dim=1).argmax(1))
    # A class that is known to be present leaves no other outcome.
    settled = (target * known).amax(1, keepdim=True) > 0
    classes = torch.where(settled, (target * known) > 0, known == 0)
    possible = torch.cat([~settled, classes], dim=1)
    lost = torch.logsumexp(logits, 1) - torch.logsumexp(logits.masked_fill(~possible, -torch.inf), 1)
    return masked_mean(lost, known.amax(1) * ~possible.all(1))


def segmentation_loss(
    logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None = None, *, background: bool = False
) -> torch.Tensor:
    """L_seg = (Dice + cross-entropy) / 2; DBiSL says "weighted sum" and no weights.

    Args:
        logits: as for :func:`cross_entropy`.
        target: (B, C, H, W, D), 0 or 1.
        known: (B, C, H, W, D), bool or weights; None for all.
        background: the Dice is the mean over background and classes, as in SSL4MIS, and not that of the classes only.
            A sigmoid head has a background for every class. The background of a softmax head is known where all
            classes are.
    """
    classes = target.shape[1]
    probability, outcomes, settled = foreground_probability(logits, classes), target, known
    if background:
        softmax = logits.shape[1] != classes
        absent = 1 - (target.sum(1, keepdim=True) if softmax else target)
        probability = torch.softmax(logits, 1) if softmax else torch.cat([torch.sigmoid(-logits), probability], 1)
        outcomes = torch.cat([absent, target], 1)
        if known is not None:
            settled = torch.cat([known.amin(1, keepdim=True) if softmax else known, known], 1)
    return 0.5 * (dice_loss(probability, outcomes, settled) + cross_entropy(logits, target, known))


def squared_error(values: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of (values - target)^2 over the voxels that are ``known`` (of their shape, bool or weights; None: all)."""
    return F.mse_loss(values, target) if known is None else masked_mean((values - target) ** 2, known)


def total(values: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum of at least one tensor."""
    return functools.reduce(torch.add, values)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``values`` where ``mask`` (broadcast to their shape) holds, over all processes; 0 where it never does.

    A mask of weights makes it the weighted mean.
    """
    mask = mask.to(values.dtype).expand_as(values)
    numerator, denominator = sum_over_ranks((values * mask).sum(), mask.sum())
    return numerator / torch.where(denominator > 0, denominator, 1)
