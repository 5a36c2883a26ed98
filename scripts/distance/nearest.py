"""Nearest: the seed nearest to every voxel, by one pass along each axis over integers that carry their source along.

min_y (||x - y||^2 + f(y)) separates over the axes (Felzenszwalb and Huttenlocher 2012). A pass keeps one integer for
every voxel: the cost so far and, in its lowest bits, the position along the axis that it came from. The least integer
is the least cost together with its source, so that a pass is made of additions and minima alone.

A pass visits the offsets 1, 2, 3, ... and stops where the offset alone costs more than any minimum found so far: its
work follows the distances that occur and not the extent of the volume. Where f is 0 on the seeds and infinite
elsewhere, the first pass is two sweeps from neighbour to neighbour.

On a GPU, where every one of these many small operations would cost a launch, and every look a wait, a pass compares all
pairs of positions along its axis at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

# Integers worked on at a time. On a CPU a few such pieces stay in the second-level cache; elsewhere few calls count.
CPU_PIECE = 2**18
OTHER_PIECE = 2**26
# Offsets between two looks at whether a pass may stop.
LOOK_INTERVAL = 4
# Every so many voxels along each axis are looked at for a bound on the distances.
BOUND_STRIDE = 4
# Bits of a cost that is no integer by itself; float64 has 53.
FIXED_POINT_BITS = 50


class Coding:
    """How a cost and a position share an integer; costs are whole numbers of ``unit``.

    Args:
        extents: of the volume, (H, W, D), in voxels.
        spacing: extent of a voxel along each axis.
        largest_price: the largest finite value of f.
    """

    def __init__(self, extents: Sequence[int], spacing: Sequence[float], largest_price: float = 0.0) -> None:
        self.bits = max(extents).bit_length()
        if largest_price == 0 and len(set(spacing)) == 1:
            # Squared distances in voxels are integers.
            self.unit, self.infinite_cost = float(spacing[0]) ** 2, sum(n * n for n in extents)
        else:
            self.infinite_cost = 2 ** min(FIXED_POINT_BITS, 59 - self.bits)
            self.unit = (sum((n * s) ** 2 for n, s in zip(extents, spacing)) + largest_price) / self.infinite_cost
        # Of one voxel along each axis.
        self.steps = [round(s * s / self.unit) for s in spacing]
        self.infinity = self.infinite_cost << self.bits
        # Added to an infinite cost, or squared by the sweep, a distance makes up to five times that.
        self.dtype = torch.int32 if 5 * self.infinity < 2**31 else torch.int64

    def positions(self, packed: torch.Tensor) -> torch.Tensor:
        """The positions alone."""
        return packed & ((1 << self.bits) - 1)

    def unpositioned(self, packed: torch.Tensor) -> torch.Tensor:
        """The integers with position 0."""
        return packed & -(1 << self.bits)

    def costs(self, axis: int, count: int) -> Sequence[torch.Tensor]:
        """What offsets of 0, 1, ..., ``count`` - 1 voxels along an ``axis`` cost, as integers with position 0."""
        return (self.steps[axis] * torch.arange(count, dtype=self.dtype).square() << self.bits).unbind()


# On a CPU torch.where, masked_fill_ and powers take many times as long as sums and minima; hence the arithmetic below.


def _sweep(seeds: torch.Tensor, coding: Coding) -> torch.Tensor:
    """The first pass, along axis 0 of (n, R) seeds, bool: integers (n, R), infinite in columns without a seed."""
    n, step = seeds.shape[0], coding.steps[0]
    position = torch.arange(n, dtype=coding.dtype, device=seeds.device)[:, None]
    # So far away that it costs more than infinity.
    far = math.isqrt(coding.infinite_cost // step) + 1
    is_seed = seeds.to(coding.dtype)
    before = is_seed * (position + far) - far
    after = is_seed.mul_(position - (n + far)).add_(n + far)
    for i in range(1, n):
        torch.maximum(before[i], before[i - 1], out=before[i])
        torch.minimum(after[n - 1 - i], after[n - i], out=after[n - 1 - i])
    packed = []
    for nearest in (before, after):
        offset = nearest - position
        packed.append(offset.mul_(offset).mul_(step << coding.bits).add_(nearest))
    return torch.minimum(*packed).clamp_(max=coding.infinity)


def _minimise(column: torch.Tensor, best: torch.Tensor, candidate: torch.Tensor, steps: Sequence[torch.Tensor]) -> None:
    """A further pass over (n, R) integers: ``best`` becomes min over j of column[j] + steps[|i - j|].

    ``candidate`` is memory to work in, of the same shape.
    """
    best.copy_(column)
    for offset in range(1, len(steps)):
        if offset % LOOK_INTERVAL == 1 and best.amax() <= steps[offset]:
            break
        torch.add(column, steps[offset], out=candidate)
        torch.minimum(best[offset:], candidate[:-offset], out=best[offset:])
        torch.minimum(best[:-offset], candidate[offset:], out=best[:-offset])


def _along(axis: int, packed: torch.Tensor, coding: Coding, piece: int, *, reach: int | None = None) -> torch.Tensor:
    """:func:`_minimise` along an ``axis`` (0 to 2) of (N, H, W, D) integers, a piece of its columns at a time.

    Args:
        reach: no offset beyond it is needed.
    """
    # The axis that comes next varies slowest over the columns: distances within a piece are then most alike.
    order = (axis + 1, (axis + 1) % 3 + 1, 0, (axis + 2) % 3 + 1)
    turned = coding.unpositioned(packed).permute(order)
    columns = turned.reshape(len(turned), -1)
    positions = torch.arange(len(columns), dtype=columns.dtype, device=columns.device)
    columns += positions[:, None]
    # A column without any finite cost stays as it is, and would keep its piece from stopping.
    reached = columns.amin(0) < coding.infinity
    costs = coding.costs(axis, len(columns) if reach is None else min(reach, len(columns)))
    if bool(reached.all()):
        _minimise_in_pieces(columns, costs, piece)
    else:
        some = columns[:, reached]
        _minimise_in_pieces(some, costs, piece)
        columns[:, reached] = some
    back = tuple(order.index(i) for i in range(4))
    return columns.reshape(turned.shape).permute(back).contiguous()


def _minimise_in_pieces(columns: torch.Tensor, costs: Sequence[torch.Tensor], piece: int) -> None:
    """:func:`_minimise` of all ``columns`` (n, any number) in place, as many at a time as make ``piece`` integers."""
    size = max(1, piece // len(columns))
    # The same memory for every piece, since fresh pages cost more than the arithmetic on them.
    memory = columns.new_empty((3, len(columns) * min(size, columns.shape[1])))
    for part in columns.split(size, dim=1) if columns.numel() else ():
        column, best, candidate = (m[: part.numel()].view(part.shape) for m in memory)
        _minimise(column.copy_(part), best, candidate, costs)
        part.copy_(best)


def _all_pairs(axis: int, packed: torch.Tensor, coding: Coding) -> torch.Tensor:
    """What :func:`_along` returns, from all pairs of positions at once: n times the memory, and no look at a value."""
    columns = coding.unpositioned(packed).movedim(axis + 1, -1)
    n = columns.shape[-1]
    position = torch.arange(n, dtype=coding.dtype, device=packed.device)
    cost = ((position[:, None] - position).square() * coding.steps[axis] << coding.bits) + position
    flat = columns.reshape(-1, 1, n)
    parts = [(part + cost).amin(-1) for part in flat.split(max(1, OTHER_PIECE // n**2))]
    return torch.cat(parts).reshape(columns.shape).clamp_(max=coding.infinity).movedim(-1, axis + 1).contiguous()


def _flat_source(packed: Sequence[torch.Tensor], coding: Coding) -> torch.Tensor:
    """The flat index (N, H, W, D), int64, of the source, from the integers after the passes along H, W and D."""
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


def _pieces(volumes: torch.Tensor) -> tuple[Sequence[torch.Tensor], int]:
    """``volumes`` (N, H, W, D) a few at a time, and the integers in a piece of their columns."""
    piece = CPU_PIECE if volumes.device.type == "cpu" else OTHER_PIECE
    return volumes.split(max(1, piece // volumes[0].numel())), piece


def _farthest(seeds: torch.Tensor, spacing: Sequence[float]) -> float:
    """At least the largest distance in (N, H, W, D), judged by a few of the seeds and voxels; infinity if unknown."""
    few = seeds[:, ::BOUND_STRIDE, ::BOUND_STRIDE, ::BOUND_STRIDE]
    if min(few.shape[1:]) < 2 or not few.flatten(1).any(1).all():
        return math.inf
    between, _ = nearest_seed(few, [BOUND_STRIDE * s for s in spacing], with_source=False)
    return float(between.amax()) + (BOUND_STRIDE - 1) * math.hypot(*spacing)


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
    coding = Coding(seeds.shape[1:], spacing)
    if seeds.device.type != "cpu":
        return _nearest_seed_of_all_pairs(seeds, coding, with_source=with_source)
    distance = torch.empty(seeds.shape, device=seeds.device)
    source = torch.empty(seeds.shape, dtype=torch.int32, device=seeds.device) if with_source else None
    parts, piece = _pieces(seeds)
    start = 0
    for part in parts:
        here = slice(start, start + len(part))
        start += len(part)
        farthest = _farthest(part, spacing)
        columns = part.movedim(1, 0)
        swept = _sweep(columns.reshape(part.shape[1], -1), coding)
        packed = [swept.reshape(columns.shape).movedim(0, 1).contiguous()]
        for axis in (1, 2):
            reach = None if farthest == math.inf else int(farthest / spacing[axis]) + 2
            packed.append(_along(axis, packed[-1], coding, piece, reach=reach))
        if source is not None:
            source[here] = _flat_source(packed, coding)
        costs = packed[-1] >> coding.bits
        if coding.unit == 1:
            torch.sqrt(costs, out=distance[here])
        else:
            distance[here] = (costs * coding.unit).sqrt_()
    for empty in (~seeds.flatten(1).any(1)).nonzero():
        distance[empty] = 0
        if source is not None:
            source[empty] = torch.arange(source[0].numel(), dtype=source.dtype, device=source.device).view_as(source[0])
    return distance, source


def _nearest_seed_of_all_pairs(
    seeds: torch.Tensor, coding: Coding, *, with_source: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`nearest_seed` without a look at any value."""
    packed = [torch.where(seeds, 0, coding.infinity).to(coding.dtype)]
    for axis in (0, 1, 2):
        packed.append(_all_pairs(axis, packed[-1], coding))
    seeded = seeds.flatten(1).any(1)[:, None, None, None]
    distance = torch.where(seeded, ((packed[-1] >> coding.bits) * coding.unit).sqrt(), 0.0)
    if not with_source:
        return distance, None
    own = torch.arange(seeds[0].numel(), device=seeds.device).view_as(seeds[0])
    return distance, torch.where(seeded, _flat_source(packed[1:], coding), own).to(torch.int32)


def cheapest_source(price: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
    """Where min_y (||x - y||^2 + price(y)) is attained, for every voxel x.

    Args:
        price: (N, H, W, D), floating, finite, not negative.
        spacing: extent of a voxel along H, W and D; squared distances and prices are in its unit squared.

    Returns:
        (N, H, W, D), int64, flat indices into the H*W*D voxels.
    """
    coding = Coding(price.shape[1:], spacing, largest_price=float(price.amax()))
    parts, piece = _pieces(price)
    along = functools.partial(_along, piece=piece) if price.device.type == "cpu" else _all_pairs
    sources = []
    for part in parts:
        start = (part.double() / coding.unit).round_().to(coding.dtype) << coding.bits
        packed: list[torch.Tensor] = []
        for axis in (0, 1, 2):
            packed.append(along(axis, packed[-1] if packed else start, coding))
        sources.append(_flat_source(packed, coding))
    return torch.cat(sources)
