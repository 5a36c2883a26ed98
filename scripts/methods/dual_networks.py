"""Dual Networks: two streams that teach each other by weighted pseudo-labels, agreement and prototypes (Lu et al.).

v and r are the V-Net's and the ResNet's softmax, Y the label. The sources are the paper's abstract and the authors'
program, which back-propagates neither `pseudo` nor `contrastive`; the abstract describes them as active.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from scripts.errors import UserError
from scripts.networks.heads import foreground_probability

from .losses import cross_entropy, dice_loss, masked_mean, total
from .objective import Objective, Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding

STREAMS = ("v", "r")
# Shorter features are divided by this and not by their length, which would multiply their gradient without bound.
SHORTEST_FEATURE = 1e-3


class DualNetworksObjective(Objective):
    """The objective of Dual Networks over the heads of :class:`~scripts.networks.DualNetworks`.

    ================ ================================================================================ =========
    name             value                                                                            crops
    ================ ================================================================================ =========
    supervised       sum over the streams of CE + Dice                                                labeled
    mistake          sum of the mean (p - Y)^2 where exactly one stream is confident of the class     labeled
    uncertainty      mean exp(-KL(v || r)) CE(r, argmax v) + mean KL(v || r), v detached              all
    cosine           mean 1 - cos(v, r), the cosine over the classes                                  all
    pseudo           sum of the mean CE to the joint pseudo-label over the reliable voxels            unlabeled
    contrastive      distance of uncertain features to their class's prototype, less that between
                     the prototypes                                                                   unlabeled
    ================ ================================================================================ =========

    A voxel is uncertain where the entropies of both streams are above their ``percentile`` over the unlabeled crops,
    else reliable. The pseudo-label is foreground where either stream says so, of the class of the more confident one.
    The features are those of the stream whose Dice on the labeled crops of the batch is worse: it learns, the other
    one teaches.

    What differs from the authors' program, and why: it takes entropies of logits and leaves out voxels *at* the
    percentile too, which is all of them once the softmax saturates; it divides `pseudo` once more by the fraction of
    reliable voxels, a factor of up to five; it draws one uncertain voxel in a hundred, here all count; it adds the
    distance between the prototypes, which would draw them together. An uncertain feature is of the class that
    the learner itself sees there, a reliable one of the pseudo-label's. Prototypes have a gradient in the distance
    between them alone, so that reliable features are not drawn to the uncertain ones.

    Args:
        weights: see :class:`~scripts.methods.Objective`; the program's are 1, with 0.5 for `mistake` and a ramp to
            0.1 for `contrastive`.
        confidence: probability from which a stream is confident of a class, in `mistake`.
        percentile: in percent, see above.

    Raises:
        UserError: when ``confidence`` or ``percentile`` is out of range, or ``weights`` names an unknown term.
    """

    TERMS = ("supervised", "mistake", "uncertainty", "cosine", "pseudo", "contrastive")

    def __init__(
        self, label_coding: LabelCoding, weights: Weights = None, *, confidence: float = 0.6, percentile: float = 20.0
    ) -> None:
        super().__init__(label_coding, weights)
        if not 0.5 <= confidence < 1:
            raise UserError(f"confidence is {confidence}; it is a probability from 0.5 to below 1.")
        if not 0 < percentile < 100:
            raise UserError(f"percentile is {percentile}; it is between 0 and 100.")
        self.confidence = confidence
        self.percentile = percentile

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        label, known = targets["label"], targets.get("known")
        logits = [heads[f"logits_{stream}"] for stream in STREAMS]
        labeled = [head[: len(label)] for head in logits]
        return {
            **self._supervision(labeled, label, known),
            **self._agreement(*logits),
            **self._unlabeled_terms(heads, labeled, label, known),
        }

    def _supervision(self, logits: list[torch.Tensor], label: torch.Tensor, known: torch.Tensor | None) -> Tensors:
        terms = {}
        probability = [foreground_probability(head, label.shape[1]) for head in logits]
        if self.active("supervised"):
            terms["supervised"] = total(
                cross_entropy(head, label, known) + dice_loss(p, label, known) for head, p in zip(logits, probability)
            )
        if self.active("mistake"):
            first, second = (p >= self.confidence for p in probability)
            differ = first ^ second if known is None else (first ^ second) * known
            terms["mistake"] = total(masked_mean((p - label) ** 2, differ) for p in probability)
        return terms

    def _agreement(self, v: torch.Tensor, r: torch.Tensor) -> Tensors:
        terms = {}
        if self.active("uncertainty"):
            log_v, log_r = torch.log_softmax(v.detach(), 1), torch.log_softmax(r, 1)
            divergence = (log_v.exp() * (log_v - log_r)).sum(1)
            error = F.nll_loss(log_r, log_v.argmax(1), reduction="none")
            terms["uncertainty"] = (torch.exp(-divergence) * error).mean() + divergence.mean()
        if self.active("cosine"):
            terms["cosine"] = (1 - F.cosine_similarity(torch.softmax(v, 1), torch.softmax(r, 1), dim=1)).mean()
        return terms

    def _unlabeled_terms(
        self, heads: Tensors, labeled: list[torch.Tensor], label: torch.Tensor, known: torch.Tensor | None
    ) -> Tensors:
        """The two terms of the unlabeled crops, which share the division into reliable and uncertain voxels."""
        logits = [heads[f"logits_{stream}"][len(label) :] for stream in STREAMS]
        if not self.active("pseudo", "contrastive") or len(logits[0]) == 0:
            return {}
        with torch.no_grad():
            probability = [torch.softmax(head, 1) for head in logits]
            pseudo_label = joint_label(*probability)
            above = [above_percentile(entropy(p), self.percentile) for p in probability]
            uncertain = above[0] & above[1]
        terms: Tensors = {}
        if self.active("pseudo"):
            errors = [F.cross_entropy(head, pseudo_label, reduction="none") for head in logits]
            terms["pseudo"] = total(masked_mean(error, ~uncertain) for error in errors)
        if self.active("contrastive"):
            with torch.no_grad():
                probability_of = [foreground_probability(head, label.shape[1]) for head in labeled]
                losses = [dice_loss(p, label, known) for p in probability_of]
                # The worse one learns. A choice on the device: to read it would wait for the network.
                second_learns = losses[1] > losses[0]
                learner = torch.where(second_learns, probability[1], probability[0])
                classes = torch.where(uncertain, learner.argmax(1), pseudo_label)
            first, second = (heads[f"features_{stream}"][len(label) :] for stream in STREAMS)
            features = torch.where(second_learns, second, first)
            terms["contrastive"] = contrastive_loss(features, classes, uncertain, logits[0].shape[1])
        return terms


def entropy(probability: torch.Tensor) -> torch.Tensor:
    """-sum p log p over the classes, (B, H, W, D), from ``probability`` (B, maps, H, W, D)."""
    return torch.special.entr(probability).sum(1)


def above_percentile(values: torch.Tensor, percentile: float) -> torch.Tensor:
    """Where ``values`` exceed the smallest value that ``percentile`` percent of them do not; bool, the same shape."""
    rank = max(1, round(values.numel() * percentile / 100))
    return values > values.flatten().kthvalue(rank).values


def joint_label(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Foreground where either prediction is, of the class of the more confident one; (B, H, W, D), int64.

    Args:
        first: (B, C + 1, H, W, D), [0, 1], background first.
        second: the same shape.
    """
    (confidence_a, label_a), (confidence_b, label_b) = first.max(1), second.max(1)
    second_wins = (label_a == 0) | ((label_b > 0) & (confidence_b > confidence_a))
    return torch.where(second_wins, label_b, label_a)


def contrastive_loss(
    features: torch.Tensor, classes: torch.Tensor, uncertain: torch.Tensor, num_maps: int
) -> torch.Tensor:
    """Draws uncertain features to the prototype of their class and prototypes away from each other.

    All vectors are scaled to length 1, and distances are Euclidean, so that each is in [0, 2]. A class without
    reliable or without uncertain voxels adds nothing.

    Args:
        features: (B, channels, H, W, D).
        classes: (B, H, W, D), int64, 0 for the background.
        uncertain: (B, H, W, D), bool.
        num_maps: classes with the background.

    Returns:
        Sum over the classes of the mean distance of their uncertain features to their prototype, which is the mean of
        their reliable features, less the mean distance between two prototypes; a scalar.
    """
    # Sums over masks, and no selection of voxels, whose number would have to be read from the device.
    vectors = features.movedim(1, -1).flatten(0, -2)
    own = F.one_hot(classes.flatten(), num_maps).to(vectors.dtype)  # (voxels, maps)
    drawn = own * uncertain.flatten()[:, None]
    reliable = own - drawn
    number, number_drawn = reliable.sum(0), drawn.sum(0)
    present = (number > 0).to(vectors.dtype)
    means = reliable.T @ vectors / number.clamp(min=1)[:, None]
    prototypes = F.normalize(means, dim=1, eps=SHORTEST_FEATURE)
    steps = F.normalize(vectors, dim=1, eps=SHORTEST_FEATURE) - prototypes.detach()[classes.flatten()]
    distances = torch.linalg.vector_norm(steps, dim=1)
    loss = (present * (drawn.T @ distances) / number_drawn.clamp(min=1)).sum()
    pairs = list(combinations(range(num_maps), 2))
    apart = torch.stack([torch.linalg.vector_norm(prototypes[a] - prototypes[b]) for a, b in pairs])
    both = torch.stack([present[a] * present[b] for a, b in pairs])
    return loss - (apart * both).sum() / both.sum().clamp(min=1)
