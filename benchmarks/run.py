"""Benchmarks: ratios of our work to a reference, measured side by side in one run.

    python -m benchmarks.run [--threads 2] [--repeats 5]

Prints one table and writes outputs/benchmarks.json. Transform: forward and backward of the signed distance map of a
4x1x112x112x80 batch against scipy's exact signed transform of the same masks, which has no gradient. Iteration: the
bundle's trainer against a bare PyTorch loop over the same network, objective and crops.
"""

from __future__ import annotations

import functools
import json
import logging
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import fire
import numpy as np
import torch
from ignite.engine import Events
from scipy.ndimage import distance_transform_edt, gaussian_filter

from scripts.demo.dataset import make_dataset
from scripts.distance import CascadedDistance, ExactDistance, GeneralizedDistance, SegmentationToDistance

from .dynamics import parse

BATCH = (4, 1, 112, 112, 80)
TRANSFORMS: dict[str, Callable[[], SegmentationToDistance]] = {
    "cascade, factor 0.5": lambda: SegmentationToDistance(CascadedDistance(), factor=0.5),
    "exact, factor 0.5": lambda: SegmentationToDistance(ExactDistance(), factor=0.5),
    "exact, factor 1": lambda: SegmentationToDistance(ExactDistance(), factor=1),
    "generalised, factor 0.5": lambda: SegmentationToDistance(GeneralizedDistance(), factor=0.5),
}


def blobs(shape: tuple[int, ...] = BATCH) -> torch.Tensor:
    """Smooth random objects that fill about a tenth of the patch, as the left atrium does; 0 or 1."""
    random = np.random.default_rng(0)
    masks = []
    for _ in range(shape[0]):
        field = gaussian_filter(random.standard_normal(shape[2:]), 12)
        masks.append(field > np.quantile(field, 0.9))
    return torch.tensor(np.stack(masks)[:, None]).float()


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forward_backward(operator: SegmentationToDistance, masks: torch.Tensor) -> None:
    """The transform of a confident prediction, and the gradient of a loss on it."""
    probability = (0.9 * masks + 0.05).requires_grad_()
    operator(probability).square().mean().backward()


def scipy_transform(masks: torch.Tensor) -> None:
    """Exact signed distance of every mask, no gradient."""
    for mask in masks[:, 0].numpy() > 0.5:
        distance_transform_edt(~mask)
        distance_transform_edt(mask)


def peak_megabytes(name: str) -> float:
    """Memory that forward and backward of a transform add at their peak, in a process of its own (Linux)."""
    code = (
        "from benchmarks.run import *; torch.set_num_threads(1); masks = blobs();"
        "status = lambda key: int(Path('/proc/self/status').read_text().split(key)[1].split()[0]) / 1024;"
        # Writing 5 resets the high-water mark, which the imports have raised.
        "Path('/proc/self/clear_refs').write_text('5'); before = status('VmRSS:');"
        f"forward_backward(TRANSFORMS[{name!r}](), masks); print(status('VmHWM:') - before)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def transform_rows(repeats: int) -> list[dict[str, Any]]:
    """Each transform against scipy; the repeats are interleaved, so that all see the same machine."""
    masks = blobs()
    times: dict[str, list[float]] = {name: [] for name in [*TRANSFORMS, "scipy"]}
    for _ in range(repeats):
        times["scipy"].append(seconds(lambda: scipy_transform(masks)))
        for name, build in TRANSFORMS.items():
            operator = build()
            times[name].append(seconds(functools.partial(forward_backward, operator, masks)))
    reference = median(times["scipy"])
    return [
        {
            "work": f"transform, forward + backward: {name}",
            "ours_s": median(times[name]),
            "reference": "scipy, forward alone",
            "reference_s": reference,
            "ratio": median(times[name]) / reference,
            "peak_mb": peak_megabytes(name),
        }
        for name in TRANSFORMS
    ]


def iteration_row(iterations: int) -> dict[str, Any]:
    """The trainer with all its handlers against a bare loop over the same network, objective and crops."""
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(output_dir=f"{folder}/data", num_unlabeled=8, num_validation=0, num_test=0)
        overrides = {
            "dataset_dir": f"{folder}/data",
            "output_dir": folder,
            "ckpt_dir": f"{folder}/models",
            "max_iterations": iterations,
        }
        parser = parse(["configs/train.json", "configs/data/demo.json"], overrides)
        trainer = parser.get_parsed_content("train#trainer")
        ticks: list[float] = []
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: ticks.append(time.perf_counter()))
        trainer.run()

        network, objective = trainer.network, trainer.objective
        optimizer = trainer.optimizer
        streams = zip(iter(trainer.data_loader), iter(trainer.unlabeled_data_loader))
        bare: list[float] = []
        for iteration, (labeled, unlabeled) in zip(range(iterations), streams):
            images = torch.cat([labeled["image"], unlabeled["image"]]).to(memory_format=torch.channels_last_3d)
            optimizer.zero_grad()
            objective(network(images), {"label": labeled["label"]}, iteration).total.backward()
            optimizer.step()
            bare.append(time.perf_counter())
    ours, reference = median(np.diff(ticks)), median(np.diff(bare))
    return {
        "work": "one training iteration, demo preset",
        "ours_s": ours,
        "reference": "bare PyTorch loop, same crops",
        "reference_s": reference,
        "ratio": ours / reference,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(threads: int = 2, repeats: int = 5, iterations: int = 40, output: str = "outputs/benchmarks.json") -> None:
    """Runs all benchmarks.

    Args:
        threads: CPU threads.
        repeats: of each transform.
        iterations: of each training loop.
        output: JSON file with the table and the machine.
    """
    logging.disable(logging.INFO)
    torch.set_num_threads(threads)
    rows = [*transform_rows(repeats), iteration_row(iterations)]
    header = ("work", "ours (s)", "reference", "reference (s)", "ratio", "peak (MB)")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        cells = [row["work"], f"{row['ours_s']:.3f}", row["reference"], f"{row['reference_s']:.3f}"]
        print("| " + " | ".join([*cells, f"{row['ratio']:.2f}", f"{row['peak_mb']:.0f}"]) + " |")
    machine = {"processor": platform.machine(), "threads": threads, "torch": torch.__version__}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    fire.Fire(main)
