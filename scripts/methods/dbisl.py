"""DBiSL: supervision, consistency and pseudo-supervision across two decoders and two tasks (Li, Eq. 6-15).

    L_all = lambda (L_sup + L_con) + beta(t) L_pse

The nine terms below are the summands of the three losses; lambda and beta are their weights in the config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from scripts.errors import UserError

from .dual_task import DualTaskObjective, ReferenceMap, reference_map
from .losses import dice_loss, masked_mean, segmentation_loss, squared_error, total
from .objective import Tensors, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.distance import DistanceToSegmentation, SegmentationToDistance

DECODERS = ("phi", "psi")
# (B, C, H, W, D) of each decoder.
Maps = list[torch.Tensor]


class Supervision(NamedTuple):
    """Labels for the first crops of the batch, and what they count.

    Args:
        label: (L, C, H, W, D), 0 or 1.
        known: the same shape, bool or weights; None for everywhere.
        reference: the distance map of the label; None where no active term needs it.
        weight: of the losses under these labels.
    """

    label: torch.Tensor
    known: torch.Tensor | None
    reference: ReferenceMap | None
    weight: float = 1.0


class DBiSLObjective(DualTaskObjective):
    """The objective of DBiSL over the heads of :class:`~scripts.networks.DualTaskVNet`.

    Sums run over the two decoders; MSE and cross-entropy are means over voxels. Terms:

    =========================== ============================================ ======== ===================
    name                        value                                        equation crops
    =========================== ============================================ ======== ===================
    supervised_segmentation     sum L_seg(Y^, Y)                             6        labeled
    supervised_distance         sum MSE(R^, R)                               6        labeled
    supervised_s2r              sum MSE(T_s2r(Y^), R)                        7        labeled
    supervised_r2s              sum L_seg(T_r2s(R^), Y)                      7        labeled
    consistency_segmentation    MSE(Y^_phi, Y^_psi)                          9        all
    consistency_distance        MSE(R^_phi, R^_psi)                          9        all
    consistency_s2r             sum MSE(T_s2r(Y^), R^)                       10       all
    consistency_r2s             sum MSE(T_r2s(R^), Y^)                       10       all
    pseudo                      sum CE(Y^, mean Y^) where unanimous          14       all
    =========================== ============================================ ======== ===================

    Measured beside them: unanimous_share, the share of voxels (of all classes) in the mask of Eq. 13.

    With the weights and transforms of train.json this deviates from the paper, each time with its reason and a way back
    in docs/methods/dbisl.md: lambda is 1, consistency and cross-task terms are ramped, r2s is supervised by Dice alone,
    and T_s2r is exact, at full resolution, with the extrema of Eq. 4 detached.

    Where the paper is silent: no side of a consistency term is detached; the pseudo-label is soft and detached; a
    prediction that is empty or full at the map's resolution is left out of the s2r terms.

    Args:
        segmentation_to_distance: T_s2r, see :class:`~scripts.methods.dual_task.DualTaskObjective`.
        distance_to_segmentation: T_r2s.
        r2s_cross_entropy: whether the loss of supervised_r2s is Dice and cross-entropy (the paper's L_seg) or Dice
            alone. Behind the steep sigmoid the cross-entropy's gradient is up to k on the voxels that are nearly
            right and zero on those that are confidently wrong.
        hard_pseudo_labels: threshold the pseudo-label at 1/2 instead of using the mean probability.
        pseudo_on_labeled: pseudo-supervise the labeled crops too (the paper's unified processing, Table 5).
        unanimity: "both" for the vote of the two segmentations and the two distance maps (Eq. 13), "segmentation" for
            the segmentations alone, as without the distance task.

    Raises:
        UserError: when ``unanimity`` is neither, or ``weights`` names an unknown term.
    """

    TERMS = (
        "supervised_segmentation",
        "supervised_distance",
        "supervised_s2r",
        "supervised_r2s",
        "consistency_segmentation",
        "consistency_distance",
        "consistency_s2r",
        "consistency_r2s",
        "pseudo",
    )

    MEASURES: tuple[str, ...] = ("unanimous_share",)

    def __init__(
        self,
        label_coding: LabelCoding,
        segmentation_to_distance: SegmentationToDistance,
        distance_to_segmentation: DistanceToSegmentation,
        weights: Weights = None,
        *,
        r2s_cross_entropy: bool = True,
        hard_pseudo_labels: bool = False,
        pseudo_on_labeled: bool = True,
        unanimity: str = "both",
    ) -> None:
        super().__init__(label_coding, segmentation_to_distance, distance_to_segmentation, weights)
        if unanimity not in ("both", "segmentation"):
            raise UserError(f"unanimity is {unanimity!r}; it is 'both' or 'segmentation'.")
        self.r2s_cross_entropy = r2s_cross_entropy
        self.hard_pseudo_labels = hard_pseudo_labels
        self.pseudo_on_labeled = pseudo_on_labeled
        self.unanimity = unanimity

    def supervisions(self, targets: Tensors) -> list[Supervision]:
        """The labels of the labeled crops."""
        needed = self.active("supervised_distance", "supervised_s2r")
        reference = reference_map(targets, self.segmentation_to_distance) if needed else None
        return [Supervision(targets["label"], targets.get("known"), reference)]

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        logits, distance = ([heads[f"{kind}_{decoder}"] for decoder in DECODERS] for kind in ("logits", "distance"))
        probability = [torch.sigmoid(head) for head in logits]
        labels = self.supervisions(targets)
        # Eq. 6 and 9; a term that is switched off is not computed.
        intra_task: dict[str, Callable[[], torch.Tensor]] = {
            "supervised_segmentation": lambda: _supervised(
                labels, lambda one: [segmentation_loss(head[: len(one.label)], one.label, one.known) for head in logits]
            ),
            "supervised_distance": lambda: _supervised(labels, lambda one: _distance_errors(distance, one.reference)),
            "consistency_segmentation": lambda: F.mse_loss(probability[0], probability[1]),
            "consistency_distance": lambda: F.mse_loss(distance[0], distance[1]),
        }
        return {
            **{name: value() for name, value in intra_task.items() if self.active(name)},
            **self._segmentation_to_distance_terms(probability, distance, labels),
            **self._distance_to_segmentation_terms(probability, distance, labels),
            **self._pseudo_supervision(logits, probability, distance, labeled=len(targets["label"])),
        }

    def _segmentation_to_distance_terms(self, probability: Maps, distance: Maps, labels: list[Supervision]) -> Tensors:
        """First summands of Eq. 7 and 10: the segmentations seen as distance maps."""
        terms: Tensors = {}
        if not self.active("supervised_s2r", "consistency_s2r"):
            return terms
        crops = slice(None) if self.active("consistency_s2r") else slice(max(len(one.label) for one in labels))
        # One call for both decoders.
        together = torch.cat([head[crops] for head in probability])
        maps, valid_maps = self.segmentation_to_distance.with_validity(together)
        seen = list(maps.chunk(len(DECODERS)))
        valid = list(valid_maps[..., None, None, None].chunk(len(DECODERS)))
        if self.active("supervised_s2r"):
            terms["supervised_s2r"] = _supervised(
                labels, lambda one: self._supervised_s2r(probability, seen, valid, one.reference)
            )
        if self.active("consistency_s2r"):
            errors = [(map_ - head) ** 2 for map_, head in zip(seen, distance)]
            terms["consistency_s2r"] = total(map(masked_mean, errors, valid))
        return terms

    def _supervised_s2r(self, probability: Maps, seen: Maps, valid: Maps, reference: ReferenceMap | None) -> Maps:
        """First summand of Eq. 7; with partial labels where R is known, and on the scale that R has there."""
        assert reference is not None  # as long as the term is active
        labeled = len(reference.map)
        valid = [mask[:labeled] if reference.known is None else mask[:labeled] * reference.known for mask in valid]
        if reference.within is not None:
            transform = self.segmentation_to_distance.with_validity
            seen = [transform(head[:labeled], within=reference.within)[0] for head in probability]
        errors = [(map_[:labeled] - reference.map) ** 2 for map_ in seen]
        return list(map(masked_mean, errors, valid))

    def _distance_to_segmentation_terms(self, probability: Maps, distance: Maps, labels: list[Supervision]) -> Tensors:
        """Second summands of Eq. 7 and 10: the distance maps seen as segmentations."""
        terms: Tensors = {}
        if not self.active("supervised_r2s", "consistency_r2s"):
            return terms
        seen = [self.distance_to_segmentation(head) for head in distance]
        if self.active("supervised_r2s"):
            terms["supervised_r2s"] = _supervised(
                labels, lambda one: [self._r2s_loss(head[: len(one.label)], one.label, one.known) for head in seen]
            )
        if self.active("consistency_r2s"):
            terms["consistency_r2s"] = total(map(F.mse_loss, seen, probability))
        return terms

    def _r2s_loss(self, probability: torch.Tensor, label: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        dice = dice_loss(probability, label, known)
        if not self.r2s_cross_entropy:
            return dice
        if known is None:
            return 0.5 * (dice + F.binary_cross_entropy(probability, label))
        return 0.5 * (dice + masked_mean(F.binary_cross_entropy(probability, label, reduction="none"), known))

    def _pseudo_supervision(self, logits: Maps, probability: Maps, distance: Maps, *, labeled: int) -> Tensors:
        """Eq. 12-14."""
        if not self.active("pseudo"):
            return {}
        first = 0 if self.pseudo_on_labeled else labeled
        logits, probability, distance = ([head[first:] for head in kind] for kind in (logits, probability, distance))
        pseudo_label, unanimous = self.pseudo_labels(torch.stack(probability), torch.stack(distance))
        if len(unanimous) > 0:
            self.measures["unanimous_share"] = unanimous.float().mean()
        errors = [F.binary_cross_entropy_with_logits(head, pseudo_label, reduction="none") for head in logits]
        return {"pseudo": total(masked_mean(error, unanimous) for error in errors)}

    @torch.no_grad()
    def pseudo_labels(self, probability: torch.Tensor, distance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pseudo-label of every voxel, and where it is believed (Eq. 12, 13).

        Args:
            probability: (decoders, B, C, H, W, D), [0, 1].
            distance: (decoders, B, C, H, W, D), [-1, 1].

        Returns:
            Pseudo-label (B, C, H, W, D), [0, 1], and mask (B, C, H, W, D), bool.
        """
        pseudo_label = probability.mean(0)
        if self.hard_pseudo_labels:
            pseudo_label = (pseudo_label > 0.5).to(pseudo_label.dtype)
        return pseudo_label, unanimity_mask(probability, distance if self.unanimity == "both" else None)


def _supervised(labels: list[Supervision], losses: Callable[[Supervision], Maps]) -> torch.Tensor:
    """The weighted sum, over the labels and over what ``losses`` returns for each of them."""
    return total(one.weight * total(losses(one)) for one in labels)


def _distance_errors(distance: Maps, reference: ReferenceMap | None) -> Maps:
    assert reference is not None  # as long as the term is active
    return [squared_error(head[: len(reference.map)], reference.map, reference.known) for head in distance]


def unanimity_mask(probability: torch.Tensor, distance: torch.Tensor | None) -> torch.Tensor:
    """Where all predictions agree on foreground or background (Eq. 13).

    Args:
        probability: (decoders, ..., H, W, D), [0, 1]; foreground above 1/2.
        distance: (decoders, ..., H, W, D), [-1, 1]; foreground below 0. None to let the segmentations vote alone.

    Returns:
        (..., H, W, D), bool.
    """
    votes = probability > 0.5
    if distance is not None:
        votes = torch.cat([votes, distance < 0])
    # Minimum and maximum of bytes; any() and all() are much slower.
    votes = votes.view(torch.uint8)
    return votes.amin(0) == votes.amax(0)
