"""Machine: total and free memory for this process, and its limits."""

from __future__ import annotations

import functools
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


@functools.cache
def total_memory() -> int | None:
    """Most memory in bytes that this process may use: the machine's or its container's; None if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
    limit = _cgroup("memory.max")
    return total if limit is None else min(total, limit)


def free_memory() -> int | None:
    """Memory in bytes that can be allocated now without swapping; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # only Linux has it
        return total_memory()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and used is not None:
        free = limit - used if free is None else min(free, limit - used)
    return free


def _cgroup(name: str) -> int | None:
    try:
        return int((CGROUP / name).read_text())
    except (OSError, ValueError):  # there is no container, or it has no limit ("max")
        return None


def processors() -> int:
    """Processor cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1
