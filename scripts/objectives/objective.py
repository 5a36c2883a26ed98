"""Objective: a loss made of named terms, each with a weight that may depend on the iteration.

A method is a subclass that lists its ``TERMS`` and computes them. Everything else (weights, ramps, switching off,
logging, gradient norms) works by name for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from scripts.data import LabelCoding

Weight = float | Callable[[int], float]


class Loss(NamedTuple):
    """What an objective returns: the weighted sum, the terms before weighting, and their weights."""

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    weights: dict[str, float]


class Objective(nn.Module):
    """Weighted sum of the terms that a subclass computes.

    Args:
        label_coding: turns label values into foreground channels, see :class:`~scripts.data.LabelCoding`.
        weights: weight of each term by its name: a number, or a function of the iteration such as
            :class:`~scripts.objectives.GaussianRampUp`. A term that is not named has weight 1. A term of constant
            weight 0 is switched off: it is not even computed.

    Raises:
        ValueError: when ``weights`` names a term that the method does not have.
    """

    TERMS: tuple[str, ...] = ()

    def __init__(self, label_coding: LabelCoding, weights: Mapping[str, Weight] | None = None) -> None:
        super().__init__()
        weights = dict(weights or {})
        unknown = sorted(set(weights) - set(self.TERMS))
        if unknown:
            raise ValueError(f"weights names {unknown}; the terms of {type(self).__name__} are {list(self.TERMS)}.")
        self.label_coding = label_coding
        self.weights = {name: weights.get(name, 1.0) for name in self.TERMS}

    def active(self, *names: str) -> bool:
        """Whether any of the terms ``names`` is switched on."""
        return any(callable(self.weights[name]) or self.weights[name] != 0 for name in names)

    def terms(self, heads: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The value of every active term, scalar tensors.

        Args:
            heads: the network's heads in float32, (B, C, H, W, D); the labeled crops come first.
            targets: "label", (L, C, H, W, D) float32 foreground channels of the L labeled crops, L <= B; and whatever
                else the labeled data carry.
        """
        raise NotImplementedError

    def forward(self, heads: dict[str, torch.Tensor], targets: dict[str, torch.Tensor], iteration: int) -> Loss:
        """The loss of one batch, in float32 whatever autocast does.

        Args:
            heads: the network's heads by name, (B, C, H, W, D); the labeled crops come first.
            targets: "label", (L, 1, H, W, D) label values of the L labeled crops.
            iteration: counted from 0.
        """
        label = targets["label"]
        with torch.autocast(label.device.type, enabled=False):
            heads = {name: head.float() for name, head in heads.items()}
            terms = self.terms(heads, {**targets, "label": self.label_coding.encode(label)})
            weights = {name: w(iteration) if callable(w) else w for name, w in self.weights.items() if name in terms}
            total = sum((weights[name] * value for name, value in terms.items()), start=label.new_zeros(()).float())
        return Loss(total, terms, weights)
