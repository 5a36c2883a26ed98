"""Distributions: what a segmentation head says about each voxel, for entropies, divergences and consistency.

A softmax head is one distribution over background and classes; a sigmoid head is one over absent and present for every
class. Written as (B, G, M, H, W, D), G distributions of M outcomes, both go through the same formulas, so that the
methods that are published for softmax also take overlapping regions.
"""

import math

import torch
import torch.nn.functional as F


def log_distributions(logits: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Logarithms of the predicted distributions.

    Args:
        logits: (B, C, H, W, D) of a sigmoid head, or (B, C + 1, H, W, D) of a softmax head, background first.
        num_classes: foreground classes C.

    Returns:
        (B, C, 2, H, W, D), absent then present, or (B, 1, C + 1, H, W, D).
    """
    if logits.shape[1] == num_classes:
        return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=2)
    return torch.log_softmax(logits, dim=1).unsqueeze(1)


def normalized_entropy(log_probability: torch.Tensor) -> torch.Tensor:
    """Entropy of every distribution over its largest possible one: -sum(p log p) / ln M.

    From logarithms, so that value and gradient stay finite where a probability underflows.

    Args:
        log_probability: (B, G, M, H, W, D).

    Returns:
        (B, G, 1, H, W, D), [0, 1].
    """
    outcomes = log_probability.shape[2]
    return -(log_probability.exp() * log_probability).sum(2, keepdim=True) / math.log(outcomes)


def squared_difference(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Squared difference of two predictions' probabilities, (B, G, M, H, W, D), from their logarithms."""
    return (first.exp() - second.exp()) ** 2
