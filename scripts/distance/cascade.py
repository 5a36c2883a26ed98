"""Cascaded distance transform: distances by repeated convolution with an exponential kernel (DBiSL Eq. 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def exponential_kernel(kernel_size: int, h: float) -> torch.Tensor:
    """K(u) = exp(-||u|| / h) on a cube of ``kernel_size`` voxels, (1, 1, s, s, s), float32 (DBiSL Eq. 2)."""
    radius = kernel_size // 2
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.exp(-torch.sqrt(x * x + y * y + z * z) / h)[None, None]


class CascadedDistance(nn.Module):
    """Distance to the nearest seed, approximately, in voxels; the paper's transform.

    A front grows from the seeds by the kernel's radius rho in every step. A voxel that step i reaches gets the
    distance i * rho - h * log(K * B_i), where B_i is one on the seeds and on all that was reached before.
    Reference: DBiSL section 3.2.2, after Riba et al. 2020, whose 2D transform it extends.

    It must be fed binary seeds: on soft input every voxel above zero is a seed of the first step. The error against
    the Euclidean transform grows with the distance (see docs/methods.md); the zero set is exact at the default ``h``
    and not above about 0.4, where a hole of one voxel closes.

    Args:
        kernel_size: s, odd, at least 3; the radius is (s - 1) / 2 voxels.
        h: decay of the kernel in voxels, positive.

    Raises:
        ValueError: when ``kernel_size`` is even or below 3, or ``h`` is not positive.
    """

    def __init__(self, kernel_size: int = 3, h: float = 0.35) -> None:
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it must be odd and at least 3.")
        if h <= 0:
            raise ValueError(f"h is {h}; the decay of the kernel must be positive (default 0.35).")
        self.radius = kernel_size // 2
        self.h = h
        self.register_buffer("kernel", exponential_kernel(kernel_size, h), persistent=False)

    needs_binary_input = True

    def forward(self, seeds: torch.Tensor) -> torch.Tensor:
        """Distances (N, 1, H, W, D), float32, in voxels; zero on the seeds, and everywhere if there is no seed.

        Args:
            seeds: (N, 1, H, W, D), exactly 0 or 1. Gradient flows into it through every step's convolution.
        """
        seeds = seeds.float()
        steps = -(-max(seeds.shape[2:]) // self.radius)
        reached = seeds
        distance = torch.zeros_like(seeds)
        for step in range(steps):
            padded = F.pad(reached, (self.radius,) * 6, mode="replicate")
            c = F.conv3d(padded, self.kernel)
            # Replaced before the logarithm: masking its result afterwards leaves NaN gradients.
            d = -self.h * torch.log(torch.where(c > 0, c, torch.ones_like(c)))
            new = d > 0
            if not new.any():
                break
            distance = torch.where(new, step * self.radius + d, distance)
            reached = torch.where(new, torch.ones_like(reached), reached)
        return distance
