"""Box: the smallest box around the foreground of a mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def foreground_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """One slice per axis around all voxels of ``mask`` that are not 0; None if there are none."""
    found = ndimage.find_objects((mask != 0).astype(np.uint8))
    return found[0] if found else None
