"""Processes: an iteration of two gloo processes with half of the batch each against one process with all of it."""

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

from benchmarks.dynamics import parse
from benchmarks.measure import row
from benchmarks.scale import SCALES
from benchmarks.share import CPU_CONFIGS, WARM_UP
from scripts.ranks import end_processes, gathered, rank, start_processes, world_size
from tools.demo.dataset import make_dataset

BATCH = 2  # of each stream, over all processes
ROOT = Path(__file__).resolve().parents[1]


def train(folder: str, scale: str, filters: int, iterations: int) -> None:
    """One of the processes that torchrun starts; the first writes the medians of all to ``folder``/<processes>.json."""
    torch.set_num_threads(1)
    start_processes(torch.device("cpu"))
    count = world_size()
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
    parser = parse([*CPU_CONFIGS, "configs/multi_gpu_train.json"], overrides)
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        trainer = parser.get_parsed_content("train#trainer")
        ticks: list[tuple[float, float]] = []

        def end() -> None:
            ticks.append((time.process_time(), time.perf_counter()))
            if len(ticks) == WARM_UP + iterations:
                trainer.terminate()

        trainer.add_event_handler(Events.ITERATION_COMPLETED, end)
        trainer.run()
    steps = [[b - a for a, b in zip(*pair)] for pair in zip(ticks[WARM_UP - 1 :], ticks[WARM_UP:])]
    mine = {kind: median(step[i] for step in steps) for i, kind in enumerate(("processor", "wall"))}
    shares = gathered(mine)
    if rank() == 0:
        Path(folder, f"{count}.json").write_text(json.dumps(shares))
    end_processes()


def processes_rows(iterations: int, *, scale: str) -> list[dict[str, Any]]:
    """A row: processor seconds of an iteration in the slower of two processes against those of one alone."""
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
    slowest = max(share["processor"] for share in found[2])
    (alone,) = found[1]
    crop = "x".join(map(str, SCALES[scale].training))
    what = f"iteration in two processes, {BATCH} crops of {crop} each, {filters} filters"
    walls = f"of the wall {max(share['wall'] for share in found[2]):.3f} and {alone['wall']:.3f} s"
    return [row(what, slowest, "one process, all four crops", alone["processor"], accuracy=walls)]


if __name__ == "__main__":
    fire.Fire(train)
