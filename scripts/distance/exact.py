"""Exact distance transform: the Euclidean distance to the nearest seed, with a gradient at that seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .nearest import cheapest_source, nearest_seed


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


class _EuclideanDistance(nn.Module):
    """Base of the transforms that measure in the unit of ``spacing``."""

    def __init__(self, spacing: Sequence[float] | None = None) -> None:
        super().__init__()
        self.spacing = (1.0, 1.0, 1.0) if spacing is None else tuple(float(s) for s in spacing)


class ExactDistance(_EuclideanDistance):
    """Distance to the nearest seed, equal to the Euclidean transform, with a gradient.

    The gradient is the envelope theorem's: the distance at x depends on the seed y(x) nearest to it and on no other.
    Losing that seed moves the front by about one voxel, so d D(x) / d seed(y(x)) is set to minus one voxel. All the
    gradient of a signed distance map therefore arrives at the two layers of voxels along the boundary, where a change
    of the mask does change the map, and none at voxels far from it (which the cascade asks to become seeds).

    Args:
        spacing: extent of a voxel along H, W and D, which is the unit of the result; None for voxels.
    """

    needs_binary_input = True

    def forward(self, seeds: torch.Tensor) -> torch.Tensor:
        """Distances (N, 1, H, W, D), float32, in units of ``spacing``; zero on the seeds, and if there is no seed.

        Args:
            seeds: (N, 1, H, W, D), 0 or 1.
        """
        needs_grad = seeds.requires_grad and torch.is_grad_enabled()
        return _NearestSeedDistance.apply(seeds.float()[:, 0], self.spacing, needs_grad)[:, None]


class GeneralizedDistance(_EuclideanDistance):
    """Generalised distance transform: a distance to a soft set, equal to the exact one on a mask.

    D^2(x) = min_y (||x - y||^2 + M^2 g(p_y)) with g(p) = max(0, 1 - 2p)^2 and M the diagonal of the volume
    (Felzenszwalb and Huttenlocher 2012). A voxel with p >= 1/2 is a seed; one below may be used at a price. No
    binarisation is needed, and the gradient goes to the voxel that determines the distance if that is below 1/2; above,
    the price is flat, so a seed receives none.

    Args:
        spacing: extent of a voxel along H, W and D, which is the unit of the result; None for voxels.
    """

    needs_binary_input = False

    def forward(self, probability: torch.Tensor) -> torch.Tensor:
        """Distances (N, 1, H, W, D) in units of ``spacing``, at most M; zero where ``probability`` is 1/2 or more.

        Args:
            probability: (N, 1, H, W, D), floating (float64 is kept, the rest becomes float32), [0, 1].
        """
        p = probability[:, 0]
        p = p if p.dtype == torch.float64 else p.float()
        diagonal_squared = sum((extent * s) ** 2 for extent, s in zip(p.shape[1:], self.spacing))
        price = diagonal_squared * torch.clamp(1 - 2 * p, min=0) ** 2
        with torch.no_grad():
            source = cheapest_source(price, self.spacing)
            squared_length = self._squared_length(source)
        squared = squared_length.to(price) + price.flatten(1).gather(1, source.flatten(1)).reshape(p.shape)
        # The square root has no finite derivative at zero, where nothing may flow.
        positive = squared > 0
        return torch.where(positive, torch.where(positive, squared, torch.ones_like(squared)).sqrt(), 0.0)[:, None]

    def _squared_length(self, source: torch.Tensor) -> torch.Tensor:
        """||x - y(x)||^2 from the flat indices ``source`` (N, H, W, D)."""
        _, height, width, depth = source.shape
        grid = torch.meshgrid(*(torch.arange(n, device=source.device) for n in source.shape[1:]), indexing="ij")
        found = (source // (width * depth), source // depth % width, source % depth)
        squares = [((x - y).double() * s) ** 2 for x, y, s in zip(grid, found, self.spacing)]
        return squares[0] + squares[1] + squares[2]
