"""Share: what of the trainer's iteration is not the network's forward and backward pass and the optimiser's step."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from ignite.engine import Events

from benchmarks.dynamics import parse
from benchmarks.iteration import flops_of
from benchmarks.measure import clock, row, seconds
from benchmarks.scale import Scale
from tools.demo.dataset import make_dataset

# Of the first iterations nothing is counted.
WARM_UP = 3
ITERATIONS_OF_THE_PAPERS = 17_000
CONFIGS = ["configs/train.json", "configs/data/left_atrium.json"]
CPU_CONFIGS = [*CONFIGS, "configs/data/left_atrium_cpu.json", "configs/budgets/cpu.json"]


class Waited:
    """A loader that notes how long each of its batches was waited for."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            start = clock()
            batch = next(batches)
            self.seconds.append(clock() - start)
            yield batch


def network_step(trainer: Any, images: torch.Tensor) -> Callable[[], None]:
    """Forward, backward from gradients of the heads, and the optimiser's step, which leaves the weights as they are."""
    with torch.no_grad():
        gradients = [1e-3 * torch.randn_like(head) for head in trainer.network(images).values()]

    def step() -> None:
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        for group in trainer.optimizer.param_groups:
            group["lr"] = 0.0
        trainer.optimizer.zero_grad()
        with torch.autocast(images.device.type, enabled=trainer.amp):
            heads = trainer.network(images)
        torch.autograd.backward([*heads.values()], [g.to(head) for g, head in zip(gradients, heads.values())])
        trainer.optimizer.step()
        for group, rate in zip(trainer.optimizer.param_groups, rates):
            group["lr"] = rate

    return step


def products_per_second(size: int, device: torch.device) -> float:
    """Floating-point operations per second of a product of float32 matrices, the most that the device is asked for."""
    a = torch.randn(size, size, device=device)
    return 2 * size**3 / median(seconds(lambda: a @ a) for _ in range(5))


def share_row(
    filters: int,
    iterations: int,
    *,
    scale: Scale,
    device: torch.device | str,
    dataset_dir: str | None = None,
    amp: bool = False,
) -> dict[str, Any]:
    """The trainer with all its handlers and loaders against the network's part, in turn in one process.

    Args:
        filters: base filters.
        iterations: to take the median of.
        scale: crop and overrides.
        device: to train on; with the left atrium's budget for a CPU on one.
        dataset_dir: of the left atrium; synthetic scans by default.
        amp: mixed precision.
    """
    device = torch.device(device)
    with tempfile.TemporaryDirectory() as folder:
        if dataset_dir is None:
            with contextlib.redirect_stdout(io.StringIO()):
                make_dataset(output_dir=f"{folder}/data", num_labeled=2, num_unlabeled=2, num_validation=0, num_test=0)
        overrides = {
            "dataset_dir": dataset_dir or f"{folder}/data",
            "splits": {"training": [0, 16]} if dataset_dir else None,
            "spacing": [1.25, 1.25, 1.25] if dataset_dir and device.type == "cpu" else None,
            "num_labeled": 8 if dataset_dir else 2,
            "output_dir": folder,
            "ckpt_dir": f"{folder}/models",
            "patch_size": scale.training,
            "base_filters": filters,
            "amp": amp,
            "device": device,
            **scale.training_overrides,
        }
        parser = parse(CPU_CONFIGS if device.type == "cpu" else CONFIGS, overrides)
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
            trainer = parser.get_parsed_content("train#trainer")
            whole, alone, waits, flops = measure(trainer, iterations)
    wait = median(waits)
    rate, most = flops / alone, products_per_second(scale.multiplied, device)
    notes = [f"share {1 - alone / whole:.3f}", f"wait for crops {wait / whole:.3f}"]
    notes += [f"{rate / 1e9:.0f} GFLOP/s, {rate / most:.2f} of a matrix product's"]
    notes += [f"{ITERATIONS_OF_THE_PAPERS} iterations in {whole * ITERATIONS_OF_THE_PAPERS / 60:.0f} min"]
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    precision = ", mixed precision" if amp else ""
    what = f"iteration of the bundle, 4x1x{'x'.join(map(str, scale.training))}, {filters} filters{precision}"
    return row(what, whole, "network and optimiser alone", alone, accuracy="; ".join(notes), peak_mb=peak)


def measure(trainer: Any, iterations: int) -> tuple[float, float, list[float], float]:
    """Medians of the whole iteration and of the network's part, the waits for crops, and the network's operations."""
    loaders = [Waited(trainer.data_loader), Waited(trainer.unlabeled_data_loader)]
    trainer.data_loader, trainer.unlabeled_data_loader = loaders
    whole: list[float] = []
    alone: list[float] = []
    flops: list[float] = []
    begun = [0.0]

    def begin() -> None:
        begun[0] = clock()

    def end() -> None:
        whole.append(clock() - begun[0])
        step = network_step(trainer, trainer.state.output[0]["image"])
        if not flops:
            flops.append(flops_of(step))
        alone.append(seconds(step))
        if len(whole) == WARM_UP + iterations:
            trainer.terminate()

    trainer.add_event_handler(Events.GET_BATCH_STARTED, begin)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, end)  # the last one, after the trainer's own handlers
    trainer.run()
    waits = [sum(pair) for pair in zip(*(loader.seconds for loader in loaders))]
    return median(whole[WARM_UP:]), median(alone[WARM_UP:]), waits[WARM_UP:], flops[0]
