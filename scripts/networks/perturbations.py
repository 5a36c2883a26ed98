"""Perturbations: what the auxiliary decoders of cross-consistency training do to the features that they see.

Both act in training mode only, like dropout, which is the third of them (``torch.nn.Dropout3d``).
"""

from __future__ import annotations

import torch
from torch import nn


class FeatureNoise(nn.Module):
    """Multiplies every value by 1 + u, u uniform in [-limit, limit) (Ouali et al., F-Noise).

    Args:
        limit: the largest relative change.
    """

    def __init__(self, limit: float = 0.3) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D), any unit; the same where not training."""
        if not self.training:
            return x
        return x * (1 + torch.empty_like(x).uniform_(-self.limit, self.limit))


class FeatureDrop(nn.Module):
    """Sets the most active voxels of every crop to 0 in all channels (Ouali et al., F-Drop).

    The activation of a voxel is the mean over its channels; dropped are those that reach a fraction of the crop's
    largest, drawn anew for every crop.

    Args:
        lowest: the smallest fraction; the lower, the more is dropped.
        highest: the largest fraction.
    """

    def __init__(self, lowest: float = 0.7, highest: float = 0.9) -> None:
        super().__init__()
        self.lowest = lowest
        self.highest = highest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D), not negative; the same where not training."""
        if not self.training:
            return x
        activation = x.mean(1, keepdim=True)
        largest = activation.amax(dim=(1, 2, 3, 4), keepdim=True)
        threshold = largest * torch.empty_like(largest).uniform_(self.lowest, self.highest)
        return x * (activation < threshold).to(x.dtype)
