"""Machine: whether the memory holds the cached volumes, and the disk what a run writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from scripts.data import Problem

# Of the free memory; the rest is for the network and the crops.
CACHE_SHARE = 0.8
# Bytes: without the first not even the logs can be written; the second holds weights and logs of the usual networks.
LEAST_DISK, USUAL_DISK = 100 * 2**20, 2 * 2**30


def memory_problems(cache: int, *, free: int | None, total: int | None) -> list[Problem]:
    """Whether ``cache`` bytes of preprocessed volumes fit into the memory; nothing is said where that is unknown."""
    if free is None or total is None or cache <= CACHE_SHARE * free:
        return []
    too_much = cache > total
    what = f"need {cache / 1e9:.1f} GB of memory as a cache, and {free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
    remedy = f"keep a part of them in memory and the others on the disk: --cache_rate {0.1 * (8 * free // cache):.1f}"
    return [Problem("memory", "the cases", what, remedy, level="error" if too_much else "warning")]


def disk_problems(output_dir: str | Path, *, needed: int = 0) -> list[Problem]:
    """Whether ``output_dir`` can be written and has room for weights, logs and ``needed`` bytes more."""
    folder = existing_parent(output_dir)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        remedy = "choose a folder that you may write to as output_dir"
        return [Problem("disk", f"output_dir {output_dir}", f"cannot be written ({folder})", remedy)]
    free = shutil.disk_usage(folder).free
    if free >= USUAL_DISK + needed:
        return []
    what = f"has {free / 1e9:.2f} GB free, and a run writes up to {(USUAL_DISK + needed) / 1e9:.2f} GB"
    level = "error" if free < LEAST_DISK else "warning"
    return [Problem("disk", f"output_dir {output_dir}", what, "free some, or choose another output_dir", level=level)]


def existing_parent(folder: str | Path) -> Path:
    """The folder itself if it exists, else the nearest one above it that does."""
    path = Path(folder).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
