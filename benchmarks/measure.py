"""Measure: times of interleaved repeats, and peak memory in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

MODULE = """
from benchmarks.measure import peak_of
import {module}
print(peak_of(*{module}.{function}))
"""


def clock() -> float:
    """Seconds: of the processor with one thread, which other programs do not disturb; else of the wall.

    Where a GPU is in use, it has finished what was asked of it.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Callable[[], Any]) -> float:
    """Time of one call, see :func:`clock`."""
    start = clock()
    work()
    return clock() - start


def medians(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median time of each of ``works``, whose repeats are interleaved so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: median(values) for name, values in times.items()}


def row(work: str, ours: float, reference: str, reference_seconds: float, **more: Any) -> dict[str, Any]:
    """One row of the table; ``more``: ``peak_mb``, and ``accuracy`` in words."""
    return {
        "work": work,
        "ours_s": ours,
        "reference": reference,
        "reference_s": reference_seconds,
        "ratio": ours / reference_seconds,
        **more,
    }


def status_megabytes(key: str) -> float:
    """A field of /proc/self/status in MB (Linux)."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) / 1024


def peak_of(prepare: Callable[[], Any], work: Callable[[Any], Any]) -> float:
    """Memory in MB that ``work`` adds at its peak to what ``prepare`` made."""
    torch.set_num_threads(1)
    prepared = prepare()
    # Writing 5 resets the high-water mark, which the imports have raised.
    Path("/proc/self/clear_refs").write_text("5")
    before = status_megabytes("VmRSS")
    result = work(prepared)
    peak = status_megabytes("VmHWM") - before
    del result
    return peak


def peak_on_gpu(work: Callable[[], Any]) -> float:
    """Memory in MB that tensors take on the current GPU at the peak of one call, with those made before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**20


def peak_megabytes(module: str, function: str) -> float:
    """:func:`peak_of` in a process of its own, of the two callables that ``module.function`` (a call) returns."""
    code = MODULE.format(module=module, function=function)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
