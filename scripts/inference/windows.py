"""Windows: the overlap that makes MONAI's sliding window move by a given stride."""

from __future__ import annotations

from collections.abc import Sequence


def window_overlap(patch_size: Sequence[int], stride: Sequence[int]) -> list[float]:
    """Overlap of neighbouring windows, per axis, for ``SlidingWindowInferer``.

    MONAI's step is int(patch * (1 - overlap)), which rounding would make one too small; hence the tiny subtraction.

    Args:
        patch_size: extent of the window in voxels.
        stride: step of the window in voxels, from 1 to the extent; the papers use 18, 18, 4 and 16, 16, 16.

    Raises:
        ValueError: when the lengths differ or a stride is out of range.
    """
    if len(patch_size) != len(stride) or any(not 1 <= s <= p for p, s in zip(patch_size, stride)):
        raise ValueError(
            f"stride is {list(stride)} and patch_size {list(patch_size)}: give one step per axis, from 1 to the patch."
        )
    return [max(0.0, 1 - s / p - 1e-9) for p, s in zip(patch_size, stride)]
