"""Allocation: on a CPU, makes the C library keep freed memory for the next tensor."""

from __future__ import annotations

import ctypes
import os
import sys

# What mallopt(3) calls its options, and the largest threshold that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_THRESHOLD = 32 * 2**20
# Whoever sets one of these has chosen an allocator or its settings.
CHOSEN_BY_USER = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)


def keep_freed_memory() -> bool:
    """Makes this process reuse freed memory, in blocks of up to 32 MB, instead of returning it to the system.

    By default glibc returns large blocks to the system, from which the next tensor of the same size gets them page by
    page, each cleared first: for a volume that is as much work as an addition or more (docs/performance.md). The peak
    of the process hardly changes; between peaks it stays where it was. Results do not change.

    Returns:
        Whether it does so now: False without glibc, and where the environment has settings of its own.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # -1 is the largest size: the top of the heap is not returned either.
    return bool(library.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD) and library.mallopt(M_TRIM_THRESHOLD, -1))
