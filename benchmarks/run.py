"""Benchmarks: ratios of our work to a reference, measured side by side in one run.

    python -m benchmarks.run [--device cuda] [--only transform,inference] [--repeats 5] [--dataset_dir DIR]

Prints one table and writes outputs/benchmarks.json. The groups: transform, classes (eight instead of one), growth (with
the volume), trainer, share (of an iteration that is not the network's), method (DBiSL against DTC's loop), layers
(against torch's), allocation (freed memory kept, on a CPU), variants (of memory format and precision; and torch.compile
on a GPU), inference, volumes (its growth with the volume), start, cache, stream
(scans in files), preparation, preflight and processes (two of
gloo against one, on a CPU).
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import torch

from benchmarks import allocation, data, inference, iteration, processes, share, transform
from benchmarks.scale import SCALES
from scripts.allocation import keep_freed_memory

EIGHT_CLASSES = ["exact, factor 1", "exact, factor 0.5", "cascade, factor 0.5"]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    header = ("work", "ours (s)", "reference", "reference (s)", "ratio", "peak (MB)", "accuracy")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        peak = row.get("peak_mb")
        cells = [row["work"], f"{row['ours_s']:.3f}", row["reference"], f"{row['reference_s']:.3f}"]
        cells += [f"{row['ratio']:.2f}", "" if peak is None else f"{peak:.0f}", row.get("accuracy") or ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    threads: int = 1,
    repeats: int = 5,
    iterations: int = 40,
    only: str | tuple[str, ...] = (),
    dataset_dir: str | None = None,
    output: str = "outputs/benchmarks.json",
    device: str = "cpu",
    scale: str | None = None,
) -> None:
    """Runs the benchmarks.

    Args:
        threads: CPU threads. With one, times on a CPU are those of the processor, else wall clock.
        repeats: of each work.
        iterations: of each loop of "trainer", and half as many of "share".
        only: names of groups, all of them by default.
        dataset_dir: the left atrium's, for "cache", "stream" and "share"; synthetic scans by default.
        output: JSON file with the table and the machine.
        device: of the groups that run a network or a map, "cpu" or "cuda".
        scale: the sizes, "cpu", "gpu" (the papers' crops) or "small" (seconds, to see that all runs); that of the
            device by default.
    """
    logging.disable(logging.INFO)
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.cuda.init()
    else:
        keep_freed_memory()  # as trainer and evaluator do; the references then gain from it, too
    name = scale or {"cuda": "gpu"}.get(device, "cpu")
    if name not in SCALES:
        raise ValueError(f"scale is {name!r}; it is one of {', '.join(SCALES)}.")
    sizes = SCALES[name]
    maps: dict[str, Any] = {"shape": sizes.maps, "device": device}
    nets: dict[str, Any] = {"scale": sizes, "device": device}
    precisions = (False, True) if device == "cuda" else (False,)
    groups: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "transform": lambda: transform.rows(repeats, **maps),
        "classes": lambda: transform.rows(max(1, repeats // 2), classes=8, names=EIGHT_CLASSES, **maps),
        "growth": lambda: transform.growth_rows(repeats, sizes=(16,) if name == "small" else (32, 64, 128)),
        "trainer": lambda: [iteration.trainer_row(iterations)],
        "share": lambda: [
            share.share_row(filters, max(1, iterations // 2), dataset_dir=dataset_dir, amp=amp, **nets)
            for filters in sizes.training_filters
            for amp in precisions
        ],
        "method": lambda: [iteration.method_row(repeats, amp=amp, **nets) for amp in precisions],
        "layers": lambda: iteration.layer_rows(repeats, **nets),
        "allocation": lambda: allocation.rows(repeats, scale="small" if name == "small" else "cpu"),
        "variants": lambda: iteration.variant_rows(repeats, **nets),
        "inference": lambda: inference.rows(repeats, **nets),
        "volumes": lambda: inference.volume_rows(**nets),
        "overlap": lambda: inference.overlap_rows(repeats),
        "start": lambda: inference.start_rows(repeats),
        "cache": lambda: [data.cache_row(dataset_dir, sizes.cases)],
        "stream": lambda: [data.stream_row(dataset_dir, sizes, repeats)],
        "preparation": lambda: [data.preparation_row(sizes.cases)],
        "preflight": lambda: [data.preflight_row(sizes.files)],
        "processes": lambda: processes.processes_rows(repeats * 3, scale="small" if name == "small" else "cpu"),
    }
    chosen = (only.split(",") if isinstance(only, str) else list(only)) or list(groups)
    if unknown := set(chosen) - set(groups):
        raise ValueError(f"only is {sorted(unknown)}; the groups are {', '.join(groups)}.")
    machine: dict[str, Any] = {"processor": platform.machine(), "threads": threads, "torch": torch.__version__}
    machine |= {"device": torch.cuda.get_device_name() if device == "cuda" else device, "scale": name}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for group in chosen:
        rows += groups[group]()
        print(f"{group} is done", flush=True)
        Path(output).write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))
    print(table(rows))


if __name__ == "__main__":
    fire.Fire(main)
