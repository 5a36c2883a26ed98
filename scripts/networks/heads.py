"""Heads: what the maps of a segmentation or distance head mean, and how foreground probabilities follow from them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from scripts.errors import UserError

TASKS = ("segmentation", "distance")
ACTIVATIONS = ("sigmoid", "softmax")


def segmentation_maps(num_classes: int, activation: str) -> int:
    """Output maps of a segmentation head: one per foreground class, and for softmax the background before them.

    Raises:
        UserError: when ``activation`` is unknown.
    """
    if activation not in ACTIVATIONS:
        raise UserError(f"activation is {activation!r}; a segmentation head has one of {', '.join(ACTIVATIONS)}.")
    return num_classes + 1 if activation == "softmax" else num_classes


def segmentation_heads(heads: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The heads of ``heads`` that are called ``logits`` or ``logits_<name>``."""
    return {name: head for name, head in heads.items() if name.startswith("logits")}


def foreground_probability(logits: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Probability of every foreground class from a segmentation head.

    Args:
        logits: (B, C, H, W, D) of a sigmoid head, or (B, C + 1, H, W, D) of a softmax head, background first.
        num_classes: foreground classes C.

    Returns:
        (B, C, H, W, D), [0, 1].
    """
    if logits.shape[1] == num_classes:
        return torch.sigmoid(logits)
    return torch.softmax(logits, dim=1)[:, 1:]
