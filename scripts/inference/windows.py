"""Windows: how far MONAI's sliding window moves, and how many of its windows go through the network together."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from scripts.data.machine import free_memory
from scripts.errors import UserError

# Maps of base_filters channels that a network holds at once for a window: 4 to 9, measured for the V-Nets, DynUNet and
# SegResNet (docs/performance.md).
MAPS = 10
FLOAT = 4  # bytes
# Of the free memory; the rest is for the volume and its sums.
SHARE = 0.5


def window_overlap(patch_size: Sequence[int], stride: Sequence[int]) -> list[float]:
    """Overlap of neighbouring windows, per axis, for ``SlidingWindowInferer``.

    MONAI's step is int(patch * (1 - overlap)), which rounding would make one too small; hence the tiny subtraction.

    Args:
        patch_size: extent of the window in voxels.
        stride: step of the window in voxels, from 1 to the extent; the papers use 18, 18, 4 and 16, 16, 16.

    Raises:
        UserError: when the lengths differ or a stride is out of range.
    """
    if len(patch_size) != len(stride) or any(not 1 <= s <= p for p, s in zip(patch_size, stride)):
        raise UserError(
            f"stride is {list(stride)} and patch_size {list(patch_size)}: give one step per axis, from 1 to the patch."
        )
    return [max(0.0, 1 - s / p - 1e-9) for p, s in zip(patch_size, stride)]


def windows_at_once(*, patch_size: Sequence[int], base_filters: int, device: torch.device | str, most: int = 4) -> int:
    """How many windows to give to the network together: as many as half of the memory that is free now takes.

    Args:
        patch_size: extent of the window in voxels.
        base_filters: of the network; the memory of a window is proportional to it.
        device: that the network runs on; its memory counts.
        most: more windows at once than this gain no time (docs/performance.md), and are never chosen.

    Returns:
        1 to ``most``; ``most`` where the system does not say how much memory is free.
    """
    device = torch.device(device)  # clients set it as text
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if free is None:
        return most
    return max(1, min(most, int(SHARE * free / (FLOAT * MAPS * base_filters * prod(patch_size)))))
