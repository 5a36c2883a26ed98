"""DBiSL on mixed crops: bidirectional copy-paste whose label is the mixed mask and the map that is made from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from scripts.distance.nearest import nearest_seed
from scripts.errors import UserError

from .dbisl import DBiSLObjective, Supervision, unanimity_mask
from .dual_task import ReferenceMap
from .mixing import CopyPaste
from .objective import Loss, Tensors, Weight, Weights

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.distance import DistanceToSegmentation, SegmentationToDistance
    from scripts.networks import Network

SOURCES = ("nearest_seed", "voxel")
TEACHING_HEADS = ("segmentation", "all")


class DBiSLMixedObjective(DBiSLObjective):
    """DBiSL's terms on the mixed crops of :class:`~scripts.methods.mixing.CopyPaste`.

    A distance map of a whole volume does not survive mixing. DBiSL makes its map from the crop, so the reference of a
    mixed crop is the map of the mixed mask, seam included, and all cross-task terms stay valid. The four supervised
    terms are sums over the voxels of true labels, weight 1, and those of pseudo-labels, weight ``pseudo_weight``; the
    consistency terms are those of DBiSL on the mixed crops.

    The teacher's mask is the mean of its segmentation heads (``teaching_heads``: "segmentation"), or of all four with
    the distances seen as segmentations by T_r2s ("all"), which asks for distance heads as good as the others.

    Args:
        network: the student.
        segmentation_to_distance: T_s2r.
        distance_to_segmentation: T_r2s.
        weights: see :class:`~scripts.methods.DBiSLObjective`; ``pseudo`` (Eq. 14) is on the mixed crops, too.
        pseudo_weight: what a pseudo-label counts beside a true label's 1; a number or a ramp.
        teaching_heads: whose mean the teacher's mask is, "segmentation" or "all".
        agreement: believe a pseudo-label only where the four heads of the teacher agree (Eq. 13).
        source: whether a voxel of the distance map belongs to the true or to the pseudo-label: "nearest_seed", as the
            surface voxel nearest to it does; "voxel", as it does itself.
        r2s_cross_entropy: see :class:`~scripts.methods.DBiSLObjective`.
        options: of :class:`~scripts.methods.mixing.CopyPaste`.

    Raises:
        UserError: when ``source`` or ``teaching_heads`` is unknown.
    """

    MEASURES = ("unanimous_share", "pseudo_foreground", "believed_share")

    def __init__(
        self,
        label_coding: LabelCoding,
        network: Network,
        segmentation_to_distance: SegmentationToDistance,
        distance_to_segmentation: DistanceToSegmentation,
        weights: Weights = None,
        *,
        pseudo_weight: Weight = 0.5,
        teaching_heads: str = "segmentation",
        agreement: bool = False,
        source: str = "nearest_seed",
        r2s_cross_entropy: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            label_coding,
            segmentation_to_distance,
            distance_to_segmentation,
            weights,
            r2s_cross_entropy=r2s_cross_entropy,
        )
        if source not in SOURCES:
            raise UserError(f"source is {source!r}; it is one of {', '.join(SOURCES)}.")
        if teaching_heads not in TEACHING_HEADS:
            raise UserError(f"teaching_heads is {teaching_heads!r}; it is one of {', '.join(TEACHING_HEADS)}.")
        self.copy_paste = CopyPaste(label_coding, network, **options)
        self.pseudo_weight = pseudo_weight
        self.teaching_heads = teaching_heads
        self.agreement = agreement
        self.source = source
        self._pseudo_weight_now = 0.0

    def views(self, labeled: Tensors, unlabeled: Tensors, iteration: int) -> Tensors:
        return self.copy_paste.views(labeled, unlabeled, iteration, teach=self._teach)

    def pictured(self, targets: Tensors) -> dict[str, tuple[int, torch.Tensor | None]]:
        return self.copy_paste.pictured(targets)

    def forward(self, heads: Tensors, targets: Tensors, iteration: int) -> Loss:
        weight = self.pseudo_weight
        self._pseudo_weight_now = weight(iteration) if callable(weight) else weight
        return super().forward(heads, targets, iteration)

    def supervisions(self, targets: Tensors) -> list[Supervision]:
        """The mixed masks, once over the voxels of true labels and once over those of pseudo-labels."""
        mask, regions = targets["mixed_label"], (targets["from_label"], targets["from_pseudo_label"])
        self.measures["pseudo_foreground"] = (mask * regions[1]).mean()
        self.measures["believed_share"] = regions[1].float().mean()
        references: list[ReferenceMap | None] = [None, None]
        if self.active("supervised_distance", "supervised_s2r"):
            references = list(self._references(mask, regions))
        weights = (1.0, self._pseudo_weight_now)
        return [Supervision(mask, *rest) for rest in zip(regions, references, weights)]

    def after_step(self, iteration: int) -> None:
        self.copy_paste.teacher.update(iteration)

    def _teach(self, heads: Tensors) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pseudo-label (U, C, H, W, D), 0 or 1, and where the heads agree."""
        logits, distance = (
            torch.stack([head.float() for name, head in heads.items() if name.startswith(kind)])
            for kind in ("logits", "distance")
        )
        probability = logits.sigmoid()
        mean = probability.mean(0)
        if self.teaching_heads == "all":
            mean = 0.5 * (mean + self.distance_to_segmentation(distance).mean(0))
        return self.copy_paste.mask(mean), unanimity_mask(probability, distance) if self.agreement else None

    @torch.no_grad()
    def _references(self, mask: torch.Tensor, regions: tuple[torch.Tensor, torch.Tensor]) -> list[ReferenceMap]:
        """The map of the mixed mask, known where its voxels belong to either of the regions."""
        known, everything = None, None
        if self.label_coding.partial:
            # What is in neither region may be of either class, and with it the distances to it.
            everything = (regions[0] > 0) | (regions[1] > 0)
            map_, known = self.segmentation_to_distance.of_partial(mask, everything)
        else:
            map_ = self.segmentation_to_distance(mask)
        if self.source == "nearest_seed":
            nearest = nearest_of_other_side(mask, everything)
            parts = [part.flatten(2).gather(2, nearest).reshape(part.shape) for part in regions]
        else:
            parts = list(regions)
        return [ReferenceMap(map_, part if known is None else part * known, known) for part in parts]


def nearest_of_other_side(mask: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
    """For every voxel the nearest one of the other side: of the object for the background, and the other way round.

    Args:
        mask: (B, C, H, W, D), 0 or 1.
        known: the same shape, bool; only these voxels are found. None for all.

    Returns:
        Flat indices into the H*W*D voxels, (B, C, H*W*D), int64; the voxel itself where there is no other side.
    """
    foreground = mask.flatten(0, 1) > 0.5
    found = torch.ones_like(foreground) if known is None else known.flatten(0, 1)
    (_, to_object), (_, to_background) = (
        nearest_seed(side & found, (1.0, 1.0, 1.0), with_source=True) for side in (foreground, ~foreground)
    )
    assert to_object is not None and to_background is not None
    return torch.where(foreground, to_background, to_object).reshape(*mask.shape[:2], -1).long()
