"""Processes: an iteration of two gloo processes against one, and against gradients averaged after the backward pass."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import fire
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents

from benchmarks.dynamics import parse
from benchmarks.measure import row
from benchmarks.scale import SCALES
from benchmarks.share import CPU_CONFIGS, WARM_UP
from scripts.ranks import average, end_processes, gathered, rank, start_processes, world_size
from tools.demo.dataset import make_dataset

BATCH = 2  # of each stream, over all processes
ROOT = Path(__file__).resolve().parents[1]


def average_behind(trainer: Any) -> None:
    """Averages the gradients in one message when all are there, instead of while they are computed."""
    trainer._replica = trainer._step
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda: average(weight.grad for weight in trainer.network.parameters() if weight.grad is not None),
    )


def train(folder: str, scale: str, filters: int, iterations: int) -> None:
    """One of the processes that torchrun starts; the first writes the medians of all to ``folder``/<processes>.json.

    Two processes train twice: by DistributedDataParallel, and with averaging behind the backward pass.
    """
    torch.set_num_threads(1)
    start_processes(torch.device("cpu"))
    count = world_size()
    ways = ("replica", "averaged") if count > 1 else ("replica",)
    overrides = {
        "dataset_dir": f"{folder}/data",
        "spacing": None,
        "splits": None,
        "num_labeled": 2,
        "output_dir": f"{folder}/{count}",
        "ckpt_dir": f"{folder}/{count}/models",
        "patch_size": SCALES[scale].training,
        "base_filters": filters,
        "labeled_batch_size": BATCH // count,
        "unlabeled_batch_size": BATCH // count,
        "device": torch.device("cpu"),
    }
    medians: dict[str, dict[str, float]] = {}
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        for way in ways:
            parser = parse([*CPU_CONFIGS, "configs/multi_gpu_train.json"], overrides)
            trainer = parser.get_parsed_content("train#trainer")
            if way == "averaged":
                average_behind(trainer)
            ticks: list[tuple[float, float]] = []

            def end(trainer: Any = trainer, ticks: list[tuple[float, float]] = ticks) -> None:
                ticks.append((time.process_time(), time.perf_counter()))
                if len(ticks) == WARM_UP + iterations:
                    trainer.terminate()

            trainer.add_event_handler(Events.ITERATION_COMPLETED, end)
            trainer.run()
            steps = [[b - a for a, b in zip(*pair)] for pair in zip(ticks[WARM_UP - 1 :], ticks[WARM_UP:])]
            medians[way] = {kind: median(step[i] for step in steps) for i, kind in enumerate(("processor", "wall"))}
    shares = gathered(medians)
    if rank() == 0:
        Path(folder, f"{count}.json").write_text(json.dumps(shares))
    end_processes()


def processes_rows(iterations: int, *, scale: str) -> list[dict[str, Any]]:
    """Rows: processor seconds of an iteration in the slower of two processes against those of one, and of averaging."""
    filters = SCALES[scale].training_filters[0]
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            make_dataset(output_dir=f"{folder}/data", num_labeled=2, num_unlabeled=2, num_validation=0, num_test=0)
        found = {}
        for count in (1, 2):
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={count}"]
            arguments = [folder, scale, str(filters), str(iterations)]
            command = [sys.executable, *launcher, "-m", "benchmarks.processes", *arguments]
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
            found[count] = json.loads(Path(folder, f"{count}.json").read_text())

    def slowest(count: int, way: str, kind: str) -> float:
        return max(share[way][kind] for share in found[count])

    one, two, former = ((1, "replica"), (2, "replica"), (2, "averaged"))
    crop = "x".join(map(str, SCALES[scale].training))
    what = f"iteration in two processes, {BATCH} crops of {crop} each, {filters} filters"
    return [
        row(
            what,
            slowest(*two, "processor"),
            reference,
            slowest(*other, "processor"),
            accuracy=f"of the wall {slowest(*two, 'wall'):.3f} and {slowest(*other, 'wall'):.3f} s",
        )
        for reference, other in (
            ("one process, all four crops", one),
            ("gradients averaged after the backward pass", former),
        )
    ]


if __name__ == "__main__":
    fire.Fire(train)
