"""Exact distance transform: the Euclidean distance to the nearest seed, with a gradient at that seed."""

from collections.abc import Sequence

import torch
from torch import nn

from .nearest import nearest_seed


class _NearestSeedDistance(torch.autograd.Function):
    """Euclidean distance forward; backward, -1 voxel per unit of seed, sent to the nearest seed."""

    @staticmethod
    def forward(ctx, seeds: torch.Tensor, spacing: Sequence[float], needs_grad: bool) -> torch.Tensor:
        distance, source = nearest_seed(seeds > 0.5, spacing, with_source=needs_grad)
        if source is not None:
            ctx.save_for_backward(source)
            ctx.step = sum(spacing) / len(spacing)
        return distance

    @staticmethod
    def backward(ctx, grad_distance: torch.Tensor):
        (source,) = ctx.saved_tensors
        grad_seeds = torch.zeros_like(grad_distance)
        own = torch.arange(source[0].numel(), dtype=source.dtype, device=source.device)
        for received, sent, to in zip(grad_seeds.flatten(1), grad_distance.flatten(1), source.flatten(1)):
            received.index_add_(0, to, sent * (to != own), alpha=-ctx.step)
        return grad_seeds, None, None


class ExactDistance(nn.Module):
    """Distance to the nearest seed, equal to the Euclidean transform, with a gradient.

    The gradient is the envelope theorem's: the distance at x depends on the seed y(x) nearest to it and on no other.
    Losing that seed moves the front by about one voxel, so d D(x) / d seed(y(x)) is set to minus one voxel. All the
    gradient of a signed distance map therefore arrives at the two layers of voxels along the boundary, where a change
    of the mask does change the map, and none at voxels far from it (which the cascade asks to become seeds).

    Args:
        spacing: extent of a voxel along H, W and D, which is the unit of the result; None for voxels.
    """

    def __init__(self, spacing: Sequence[float] | None = None) -> None:
        super().__init__()
        self.spacing = (1.0, 1.0, 1.0) if spacing is None else tuple(float(s) for s in spacing)

    def forward(self, seeds: torch.Tensor) -> torch.Tensor:
        """Distances (N, 1, H, W, D), float32, in units of ``spacing``; zero on the seeds, and if there is no seed.

        Args:
            seeds: (N, 1, H, W, D), 0 or 1.
        """
        needs_grad = seeds.requires_grad and torch.is_grad_enabled()
        return _NearestSeedDistance.apply(seeds.float()[:, 0], self.spacing, needs_grad)[:, None]
