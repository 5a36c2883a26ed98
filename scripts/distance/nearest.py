"""Nearest: the seed nearest to every voxel, by scipy on a CPU and by one pass along each axis on other devices.

The squared distance to the nearest seed separates over the axes (Felzenszwalb and Huttenlocher 2012). A pass keeps one
integer for every voxel: the cost so far and, in its lowest bits, the position along the axis that it came from. The
least integer is the least cost together with its source. A pass compares all pairs of positions along its axis at once,
since on a GPU every one of many small operations would cost a launch, and every look at a value a wait.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

# Integers compared at a time, which bounds the memory.
PIECE = 2**26
# Bits of a cost that is no integer by itself; float64 has 53.
FIXED_POINT_BITS = 50


class Coding:
    """How a cost and a position share an integer; costs are whole numbers of ``unit``.

    Args:
        extents: of the volume, (H, W, D), in voxels.
        spacing: extent of a voxel along each axis.
    """

    def __init__(self, extents: Sequence[int], spacing: Sequence[float]) -> None:
        self.bits = max(extents).bit_length()
        if len(set(spacing)) == 1:
            # Squared distances in voxels are integers.
            self.unit, self.infinite_cost = float(spacing[0]) ** 2, sum(n * n for n in extents)
        else:
            self.infinite_cost = 2 ** min(FIXED_POINT_BITS, 60 - self.bits)
            self.unit = sum((n * s) ** 2 for n, s in zip(extents, spacing)) / self.infinite_cost
        # Of one voxel along each axis.
        self.steps = [round(s * s / self.unit) for s in spacing]
        self.infinity = self.infinite_cost << self.bits
        # Three distances may be added to an infinite cost, together at most as large as that.
        self.dtype = torch.int32 if 2 * self.infinity < 2**31 else torch.int64

    def positions(self, packed: torch.Tensor) -> torch.Tensor:
        """The positions alone."""
        return packed & ((1 << self.bits) - 1)

    def unpositioned(self, packed: torch.Tensor) -> torch.Tensor:
        """The integers with position 0."""
        return packed & -(1 << self.bits)


def _passes(seeds: torch.Tensor, coding: Coding) -> list[torch.Tensor]:
    """The integers (N, H, W, D) after the passes along H, W and D, from ``seeds`` (N, H, W, D), bool."""
    packed = [torch.where(seeds, 0, coding.infinity).to(coding.dtype)]
    for axis in (0, 1, 2):
        columns = coding.unpositioned(packed[-1]).movedim(axis + 1, -1)
        n = columns.shape[-1]
        position = torch.arange(n, dtype=coding.dtype, device=seeds.device)
        cost = ((position[:, None] - position).square() * coding.steps[axis] << coding.bits) + position
        parts = columns.reshape(-1, 1, n).split(max(1, PIECE // n**2))
        least = torch.cat([(part + cost).amin(-1) for part in parts]).reshape(columns.shape)
        packed.append(least.clamp_(max=coding.infinity).movedim(-1, axis + 1).contiguous())
    return packed[1:]


def _flat_source(packed: Sequence[torch.Tensor], coding: Coding) -> torch.Tensor:
    """The flat index (N, H, W, D), int64, of the source, from what :func:`_passes` returned."""
    count, height, width, depth = packed[0].shape
    volume = torch.arange(count, device=packed[0].device)[:, None, None, None] * (height * width * depth)
    x = torch.arange(height, device=packed[0].device)[:, None, None] * (width * depth)
    y = torch.arange(width, device=packed[0].device)[:, None] * depth
    # Where the last pass came from; there, where the pass before it came from; and so on.
    z = coding.positions(packed[2]).long()
    across = packed[1].flatten().index_select(0, (z + (volume + x + y)).flatten()).reshape(z.shape)
    z += coding.positions(across).long().mul_(depth)
    down = packed[0].flatten().index_select(0, (z + (volume + x)).flatten()).reshape(z.shape)
    return z.add_(coding.positions(down).long().mul_(width * depth))


def nearest_seed(
    seeds: torch.Tensor, spacing: Sequence[float], *, with_source: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The distance of every voxel to the nearest seed, and which seed that is.

    Args:
        seeds: (N, H, W, D), bool.
        spacing: extent of a voxel along H, W and D; distances are in its unit.
        with_source: also return the nearest seed, one of them if there are several.

    Returns:
        The distances (N, H, W, D), float32, 0 in volumes without seeds; and the flat index (N, H, W, D), int32, into
        the H*W*D voxels of the seed, that of the voxel itself on seeds and in volumes without any, or None.
    """
    if seeds.device.type == "cpu":
        return _by_scipy(seeds, spacing, with_source=with_source)
    return _by_passes(seeds, spacing, with_source=with_source)


def _by_passes(
    seeds: torch.Tensor, spacing: Sequence[float], *, with_source: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`nearest_seed` without a look at any value."""
    coding = Coding(seeds.shape[1:], spacing)
    packed = _passes(seeds, coding)
    seeded = seeds.flatten(1).any(1)[:, None, None, None]
    distance = torch.where(seeded, ((packed[-1] >> coding.bits) * coding.unit).sqrt(), 0.0)
    if not with_source:
        return distance, None
    return distance, torch.where(seeded, _flat_source(packed, coding), _own(seeds)).to(torch.int32)


def _by_scipy(
    seeds: torch.Tensor, spacing: Sequence[float], *, with_source: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`nearest_seed`, one volume after the other."""
    distance = torch.zeros(seeds.shape)
    source = _own(seeds).to(torch.int32).repeat(len(seeds), 1, 1, 1) if with_source else None
    for i, volume in enumerate(seeds.numpy()):
        if not volume.any():
            continue
        found = distance_transform_edt(~volume, sampling=spacing, return_indices=with_source)
        if source is not None:
            found, indices = found
            source[i] = torch.from_numpy(np.ravel_multi_index(tuple(indices), volume.shape))
        distance[i] = torch.from_numpy(found)
    return distance, source


def _own(seeds: torch.Tensor) -> torch.Tensor:
    """The flat index (H, W, D), int64, of every voxel."""
    return torch.arange(seeds[0].numel(), device=seeds.device).view_as(seeds[0])
