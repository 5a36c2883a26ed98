"""Mixing: boxes of one crop pasted into another, with labels and where they come from (BCP, CutMix)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from scripts.errors import UserError
from scripts.inference.decoding import smaller_components
from scripts.networks.heads import foreground_probability, segmentation_heads

from .objective import Tensors
from .teacher import EMATeacher

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.networks import Network


def random_box(extents: Sequence[int], sides: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """A box at a uniformly random place.

    Args:
        extents: of the crop, H, W and D in voxels.
        sides: of the box, each at least 0 and at most that of the crop.
        device: of the result.

    Returns:
        (1, 1, H, W, D), bool, True within the box.
    """
    inside = torch.zeros(1, 1, *extents, dtype=torch.bool, device=device)
    x, y, z = (int(torch.randint(extent - side + 1, ())) for extent, side in zip(extents, sides, strict=True))
    inside[..., x : x + sides[0], y : y + sides[1], z : z + sides[2]] = True
    return inside


def box_of_share(extents: Sequence[int], share: float, device: torch.device | None = None) -> torch.Tensor:
    """:func:`random_box` whose sides are ``share`` of those of the crop, rounded down."""
    return random_box(extents, [int(extent * share) for extent in extents], device)


def checked_volume(volume: Sequence[float]) -> tuple[float, float]:
    """The two shares of ``volume``, for :func:`cut_mix_box`.

    Raises:
        UserError: when they are not ascending shares of at least 0 and at most 1.
    """
    if len(volume) != 2 or not 0 <= volume[0] <= volume[1] <= 1:
        raise UserError(f"box_volume is {volume}; it is two ascending shares of the crop's volume, from 0 to 1.")
    return volume[0], volume[1]


def cut_mix_box(
    extents: Sequence[int], volume: tuple[float, float], device: torch.device | None = None
) -> torch.Tensor:
    """:func:`random_box` with a share of the crop's volume that is uniform between the two of ``volume``."""
    smallest, largest = volume
    share = smallest + (largest - smallest) * float(torch.rand(()))
    return box_of_share(extents, share ** (1 / 3), device)


def paste(outside: torch.Tensor, inside: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """``inside`` where ``box`` is True, ``outside`` elsewhere; tensors of one shape (B, ..., H, W, D)."""
    return torch.where(box, inside, outside)


def next_crops(batch: torch.Tensor) -> torch.Tensor:
    """Of every crop of a batch (B, ...) the next one, of the last the first.

    Raises:
        UserError: when there is only one crop, which would be mixed with itself.
    """
    if len(batch) < 2:
        raise UserError(
            "the method mixes crops of one batch and there is only one: labeled_batch_size, or for unlabeled crops "
            "unlabeled_batch_size, must be at least 2 in every process."
        )
    return batch.roll(1, 0)


def pasted_labeled(labeled: Tensors, box: torch.Tensor) -> Tensors:
    """Every labeled crop with the box of the next one pasted into it: copy-paste between labeled crops.

    Marked labels are mixed as they are, so that what is unknown stays so. A distance map of the whole volume no longer
    fits a mixed crop and is left out.

    Args:
        labeled: the labeled stream's "image" and "label", (L, channels, H, W, D), and perhaps "label_weight", which
            comes back voxel by voxel.
        box: (1, 1, H, W, D), bool.
    """
    kept = {key: value for key, value in labeled.items() if key in ("image", "label", "label_weight")}
    return {key: paste(value, next_crops(value), box) for key, value in kept.items()}


class CopyPaste(nn.Module):
    """Bidirectional copy-paste (Bai et al., BCP): labeled and unlabeled crops with a box of each other.

    Until iteration ``warm_up`` the network sees labeled crops pasted into labeled ones. From then on a mean teacher,
    which starts as a copy of the student, labels the unlabeled crops, and of every pair of a labeled crop l and an
    unlabeled one u the network sees both mixtures: l with a box of u, and u with a box of l. One box per batch.

    BCP differs in this: its teacher predicts in training mode, and it mixes half of the batch one way and half the
    other, so that its 4 + 4 crops make as many mixed ones as 2 + 2 here.

    Args:
        label_coding: see :class:`~scripts.methods.Objective`.
        network: the student.
        ema_decay: of the teacher, see :class:`~scripts.methods.teacher.EMATeacher`.
        warm_up: iterations on labeled crops alone.
        box_share: side of the box as a share of the crop's, in (0, 1).
        largest_component: keep only the largest connected part of every class of a pseudo-label, where the object is
            one and the crop holds all of it.

    Raises:
        UserError: when an argument is out of range.
    """

    def __init__(
        self,
        label_coding: LabelCoding,
        network: Network,
        *,
        ema_decay: float = 0.99,
        warm_up: int = 0,
        box_share: float = 2 / 3,
        largest_component: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < box_share < 1:
            raise UserError(f"box_share is {box_share}; it is a share of the crop's side, above 0 and below 1.")
        if warm_up < 0:
            raise UserError(f"warm_up is {warm_up}; it is a number of iterations, 0 or more.")
        self.label_coding = label_coding
        self.teacher = EMATeacher(network, decay=ema_decay, start=int(warm_up))
        self.warm_up = warm_up
        self.box_share = box_share
        self.largest_component = largest_component

    def views(
        self,
        labeled: Tensors,
        unlabeled: Tensors,
        iteration: int,
        *,
        teach: Callable[[Tensors], tuple[torch.Tensor, torch.Tensor | None]] | None = None,
    ) -> Tensors:
        """The views of :meth:`Objective.views`, see there for the arguments.

        Args:
            teach: makes of the teacher's heads a pseudo-label (U, C, H, W, D), 0 or 1, and where it is believed, bool
                of the same shape or None; by default the mean of the segmentation heads, everywhere.

        Returns:
            "image"; "label", the labeled crops' own, marked; and of the N mixed crops "mixed_label", (N, C, H, W, D),
            0 or 1, "from_label" and "from_pseudo_label", bool of the same shape: the voxels with a label of the data,
            or their "label_weight", and those with a pseudo-label that is believed. Voxels of unknown label are in
            neither.
        """
        image, extra = labeled["image"], unlabeled["image"]
        box = box_of_share(image.shape[2:], self.box_share, image.device)
        if iteration < self.warm_up or len(extra) == 0:
            pasted = pasted_labeled(labeled, box)
            mixed = self._true(pasted)
            views = {"image": pasted["image"], "mixed_label": mixed[0], "from_label": mixed[1]}
            views["from_pseudo_label"] = torch.zeros_like(mixed[1])
        else:
            pseudo, believed = (teach or self.pseudo_label)(self.teacher.forward_heads(extra))
            label, known = self._true(labeled)
            nothing = torch.zeros_like
            believed = torch.ones_like(pseudo, dtype=torch.bool) if believed is None else believed
            views = {
                "image": both_ways(image, extra, box),
                "mixed_label": both_ways(label, pseudo, box),
                "from_label": both_ways(known, nothing(believed), box),
                "from_pseudo_label": both_ways(nothing(known), believed, box),
            }
        return {**views, "label": labeled["label"]}

    def pseudo_label(self, heads: Tensors) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The mean of the segmentation heads, thresholded; believed everywhere."""
        return self.mask(mean_probability(heads, self.label_coding.num_classes)), None

    def mask(self, probability: torch.Tensor) -> torch.Tensor:
        """Probability (U, C, H, W, D) as a mask of 0 and 1, of the largest components if so wished."""
        mask = self.label_coding.harden(probability)
        return largest_components(mask) if self.largest_component else mask

    def pictured(self, targets: Tensors) -> dict[str, tuple[int, torch.Tensor | None]]:
        """See :meth:`Objective.pictured`: the first crop of either direction."""
        number = len(targets["mixed_label"])
        shown = {"labeled outside": 0, "unlabeled outside": number // 2}
        if not targets["from_pseudo_label"].any():
            shown = {"labeled, mixed": 0}
        return {title: (index, targets["mixed_label"][index]) for title, index in shown.items()}

    def _true(self, labeled: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Foreground channels (L, C, H, W, D) of marked labels, and where they are known, bool or weights."""
        channels, known = self.label_coding.encode(labeled["label"]), self.label_coding.known(labeled["label"])
        known = torch.ones_like(channels, dtype=torch.bool) if known is None else known
        return channels, known * labeled.get("label_weight", True)


def mean_probability(heads: Tensors, num_classes: int) -> torch.Tensor:
    """Mean of the segmentation heads' foreground probabilities, (B, C, H, W, D), float32."""
    probabilities = [foreground_probability(head.float(), num_classes) for head in segmentation_heads(heads).values()]
    return torch.stack(probabilities).mean(0)


def both_ways(first: torch.Tensor, second: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Every pair mixed both ways, (2n, ...): n times first with a box of second, then second with a box of first.

    n is the larger number of the two; the smaller batch is repeated.
    """
    number = max(len(first), len(second))
    first, second = (part[torch.arange(number, device=part.device) % len(part)] for part in (first, second))
    return torch.cat([paste(first, second, box), paste(second, first, box)])


def largest_components(mask: torch.Tensor) -> torch.Tensor:
    """The largest connected part of every channel of a mask (B, C, H, W, D) of 0 and 1."""
    foreground = mask.cpu().numpy() > 0.5
    kept = [channel & ~smaller_components(channel) for channel in foreground.reshape(-1, *mask.shape[2:])]
    return torch.from_numpy(np.stack(kept)).reshape(mask.shape).to(mask)
