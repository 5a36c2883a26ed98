"""Allocation: training and inference on a CPU with freed memory kept and without, in processes of their own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import inference
from benchmarks.iteration import LABELED, dbisl_iteration
from benchmarks.measure import row, seconds, status_megabytes
from benchmarks.scale import SCALES
from benchmarks.transform import blobs
from scripts.allocation import keep_freed_memory

CODE = (
    "import json, sys; from benchmarks.allocation import measure; print(json.dumps(measure(*json.loads(sys.argv[1]))))"
)


def works(scale: str) -> dict[str, Any]:
    """What is measured, by name, each a function that prepares it."""
    sizes = SCALES[scale]
    stride, shape = next(iter(sizes.volumes.items()))

    def training(filters: int) -> Any:
        label = blobs(4, 1, sizes.training)
        return dbisl_iteration(label + 0.3 * torch.randn_like(label), label[:LABELED], filters=filters)

    def segmentation() -> Any:
        net = inference.network(channels_last=True, filters=sizes.inference_filters)
        predictor = inference.Predictor([net])
        return partial(inference.ours, predictor, torch.randn(1, 1, *shape), stride, sizes.windows)

    crop = "x".join(map(str, sizes.training))
    found: dict[str, Any] = {
        f"iteration of DBiSL, 4x1x{crop}, {filters} filters": partial(training, filters)
        for filters in sizes.training_filters
    }
    return found | {f"inference of {'x'.join(map(str, shape))}, stride {'x'.join(map(str, stride))}": segmentation}


def measure(name: str, scale: str, keep: bool, repeats: int) -> dict[str, float]:
    """Median seconds and page faults of one call in this process, and its peak memory (MB)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if keep and not keep_freed_memory():
        raise RuntimeError("memory cannot be kept here: it needs glibc and an environment without settings for it.")
    work = works(scale)[name]()
    work()
    work()  # memory in use grows until the second call
    times, faults = [], []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        times.append(seconds(work))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {"seconds": median(times), "faults": median(faults), "peak_mb": status_megabytes("VmHWM")}


def rows(repeats: int, *, scale: str) -> list[dict[str, Any]]:
    """A row for each work; the processes take turns, and each row has the medians of two per side."""
    found = []
    for name in works(scale):
        runs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for keep in (False, True, False, True):
            done = subprocess.run(
                [sys.executable, "-c", CODE, json.dumps([name, scale, keep, repeats])],
                capture_output=True,
                text=True,
                check=True,
                cwd=Path(__file__).resolve().parents[1],
            )
            runs[keep].append(json.loads(done.stdout.splitlines()[-1]))
        kept, returned = (
            {key: median(run[key] for run in runs[keep]) for key in ("seconds", "faults", "peak_mb")}
            for keep in (True, False)
        )
        notes = f"{kept['faults']:.0f} page faults, {returned['faults']:.0f} before"
        notes += f"; process {kept['peak_mb']:.0f} MB, {returned['peak_mb']:.0f} before"
        what = f"{name}, freed memory kept"
        found.append(row(what, kept["seconds"], "freed memory returned", returned["seconds"], accuracy=notes))
    return found
