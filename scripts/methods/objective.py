"""Objective: a loss made of named terms, each with a weight that may depend on the iteration.

A method is a subclass that lists its ``TERMS`` and computes them. Everything else (weights, ramps, switching off,
logging, gradient norms) works by name for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from scripts.errors import UserError
from scripts.networks.heads import segmentation_heads

from .losses import segmentation_loss, total
from .reduction import mean_over_ranks

if TYPE_CHECKING:
    from scripts.data import LabelCoding

Weight = float | Callable[[int], float]
# Of the terms, by name.
Weights = Mapping[str, Weight] | None
# By name: heads, targets, terms.
Tensors = dict[str, torch.Tensor]


class Loss(NamedTuple):
    """What an objective returns: the weighted sum, the terms before weighting, their weights, and what it measured."""

    total: torch.Tensor
    terms: Tensors
    weights: dict[str, float]
    measures: Tensors


class Heads(dict[str, torch.Tensor]):
    """Heads by name; one that the network does not have is refused in words."""

    def __missing__(self, name: str) -> torch.Tensor:
        raise UserError(
            f"the method needs a head called {name!r} and the network has {', '.join(self)}: docs/networks.md says "
            "which networks fit which methods."
        )


class Objective(nn.Module):
    """Weighted sum of the terms that a subclass computes.

    The trainer calls, in every iteration, :meth:`views`, :meth:`predict`, the objective itself and, after the
    optimiser's step, :meth:`after_step`. Parameters of the objective that require a gradient are optimised with those
    of the network. ``label_coding`` and ``weights`` mean the same for every method, whose docstring lists the
    arguments that it adds.

    Args:
        label_coding: turns label values into foreground channels, see :class:`~scripts.data.LabelCoding`.
        weights: weight of each term by its name: a number, or a function of the iteration such as
            :class:`~scripts.methods.GaussianRampUp`. A term that is not named has weight 1. A term of constant
            weight 0 is switched off: it is not even computed.
        dice_background: whether the Dice of :meth:`supervision` is the mean over background and classes, as in SSL4MIS,
            or that of the classes only, which is 1.4 times as large at p = 1/2 if a fifth of the voxels is foreground.

    Raises:
        UserError: when ``weights`` names a term that the method does not have.
    """

    TERMS: tuple[str, ...] = ()
    # What `terms` may put into `self.measures` (name -> scalar tensor), to be logged beside the terms.
    MEASURES: tuple[str, ...] = ()

    def __init__(self, label_coding: LabelCoding, weights: Weights = None, *, dice_background: bool = False) -> None:
        super().__init__()
        weights = dict(weights or {})
        unknown = sorted(set(weights) - set(self.TERMS))
        if unknown:
            raise UserError(f"weights names {unknown}; the terms of {type(self).__name__} are {list(self.TERMS)}.")
        self.label_coding = label_coding
        self.dice_background = dice_background
        self.measures: Tensors = {}
        self.weights = {name: weights.get(name, 1.0) for name in self.TERMS}

    def active(self, *names: str) -> bool:
        """Whether any of the terms ``names`` is switched on."""
        return any(callable(self.weights[name]) or self.weights[name] != 0 for name in names)

    @torch.no_grad()
    def views(self, labeled: Tensors, unlabeled: Tensors, iteration: int) -> Tensors:
        """What the network sees in this iteration, and what the terms need beside its heads.

        Here: the labeled crops, then the unlabeled ones. A method that mixes crops, or shows several views of each,
        returns an "image" of its own. Random draws come from torch's generator, which is seeded for the iteration.

        Args:
            labeled: every key of the labeled stream: "image", (L, channels, H, W, D), "label", (L, 1, H, W, D) marked
                label values, with pseudo-labels of the data "label_weight", (L, 1, 1, 1, 1), and whatever else the
                data carry.
            unlabeled: every key of the unlabeled stream; without one, an "image" of no crops.
            iteration: counted from 0.

        Returns:
            "image", (N, channels, H, W, D), of any number of crops; "label" as it came; and further tensors, which
            reach :meth:`terms` among its ``targets``. Further keys of the unlabeled stream are called "unlabeled_...".
        """
        further = {f"unlabeled_{key}": value for key, value in unlabeled.items() if key != "image"}
        return {**further, **labeled, "image": torch.cat([labeled["image"], unlabeled["image"]])}

    def predict(self, network: nn.Module, image: torch.Tensor) -> Tensors:
        """The network's heads for the views ``image`` (N, channels, H, W, D), with gradient; one pass by default.

        A method that perturbs features calls ``network.encode`` and ``network.decode`` instead.
        """
        return network(image)

    def pictured(self, targets: Tensors) -> dict[str, tuple[int, torch.Tensor | None]]:
        """The views that a picture of the training shows: title -> position in the batch, and what it should become.

        Args:
            targets: as :meth:`views` returned them.

        Returns:
            The reference is (C, H, W, D), [0, 1]; None where there is none.
        """
        labels = self.label_coding.encode(targets["label"])
        first: dict[str, tuple[int, torch.Tensor | None]] = {"labeled": (0, labels[0])}
        if len(targets["image"]) > len(labels):
            first["unlabeled"] = (len(labels), None)
        return first

    def further_heads(self, heads: Tensors, targets: Tensors) -> Tensors:
        """Outputs of further networks of the method, such as a teacher, under the caller's autocast; none by default.

        Args:
            heads: the network's heads, (B, C, H, W, D); the labeled crops come first.
            targets: as for :meth:`forward`.

        Returns:
            Heads by names that the network does not use; :meth:`terms` finds them among its ``heads``.
        """
        return {}

    def terms(self, heads: Tensors, targets: Tensors) -> Tensors:
        """The value of every active term, scalar tensors.

        Args:
            heads: the network's heads in float32, (B, C, H, W, D); the labeled crops come first.
            targets: "label", (L, C, H, W, D) float32 foreground channels of the L labeled crops, L <= B; "image",
                (B, channels, H, W, D); with partial labels "known", (L, C, H, W, D), bool, where the label is known,
                and with labels that do not all count the same, how much each voxel counts, float, [0, 1]; and whatever
                else the labeled data carry.
        """
        raise NotImplementedError

    def supervision(self, heads: Tensors, targets: Tensors, *, mean: bool = False) -> Tensors:
        """The term ``supervised_segmentation``, where it is active: L_seg of the labeled crops over all heads.

        Args:
            heads: see :meth:`terms`; the segmentation heads count.
            targets: see :meth:`terms`.
            mean: the mean over the heads instead of their sum.
        """
        if not self.active("supervised_segmentation"):
            return {}
        label, known, logits = targets["label"], targets.get("known"), segmentation_heads(heads).values()
        losses = [
            segmentation_loss(head[: len(label)], label, known, background=self.dice_background) for head in logits
        ]
        return {"supervised_segmentation": total(losses) / (len(losses) if mean else 1)}

    def after_step(self, iteration: int) -> None:
        """Called by the trainer after each step of the optimiser, for what a method updates besides; does nothing here.

        A teacher or an adversary that lives in the objective is a submodule of it, so that ``state_dict`` has it.

        Args:
            iteration: the one that has just been done, counted from 0.
        """

    def forward(self, heads: Tensors, targets: Tensors, iteration: int) -> Loss:
        """The loss of one batch, in float32 whatever autocast does.

        Args:
            heads: the network's heads by name, (B, C, H, W, D); the labeled crops come first.
            targets: "label", (L, 1, H, W, D) label values of the L labeled crops, see
                :meth:`~scripts.data.LabelCoding.mark`; "image", (B, channels, H, W, D), for
                the methods that look at it; perhaps "label_weight", what the labels count, broadcast to "label".
            iteration: counted from 0.
        """
        # Of a MONAI tensor only the values: what it knows of each image does not survive the mixing of a batch.
        label = targets["label"].as_subclass(torch.Tensor)
        heads = Heads(heads)
        heads.update(self.further_heads(heads, targets))
        with torch.autocast(label.device.type, enabled=False):
            heads = Heads((name, head.float()) for name, head in heads.items())
            self._refuse_softmax_of_regions(heads)
            self.measures = {}
            targets = {**targets, "label": self.label_coding.encode(label)}
            known = self.label_coding.known(label)
            if "label_weight" in targets:
                known = targets["label_weight"] * torch.ones_like(targets["label"]) * (1 if known is None else known)
            terms = self.terms(heads, targets if known is None else {**targets, "known": known})
            # Means over the voxels of this process become those of the whole batch; see reduction.py.
            terms = dict(zip(terms, mean_over_ranks(*terms.values())))
            self.measures = dict(zip(self.measures, mean_over_ranks(*self.measures.values())))
            weights = {name: w(iteration) if callable(w) else w for name, w in self.weights.items() if name in terms}
            loss = sum((weights[name] * value for name, value in terms.items()), start=label.new_zeros(()).float())
        return Loss(loss, terms, weights, self.measures)

    def _refuse_softmax_of_regions(self, heads: Tensors) -> None:
        if self.label_coding.regions is None:
            return
        for name, head in segmentation_heads(heads).items():
            if head.shape[1] != self.label_coding.num_classes:
                raise UserError(
                    f"{name} has {head.shape[1]} maps: a softmax head makes classes exclude each other, and the "
                    f"{self.label_coding.num_classes} regions overlap. Add --network_def#activation sigmoid, or use a "
                    "method with sigmoid heads."
                )
