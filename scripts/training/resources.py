"""Resources: what to do when memory runs out, or when a data worker dies or hangs, as a note on the error."""

from __future__ import annotations

import re
from typing import Any

import torch

from scripts.errors import Advice, chain

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|CUDNN_STATUS_ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
WORKER = re.compile(r"DataLoader (worker .* (is killed|exited unexpectedly)|timed out)")


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the memory of the machine or of the GPU is exhausted."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and OUT_OF_MEMORY.search(str(error)) is not None


def advise_on_resources(trainer: Any, error: BaseException) -> None:
    """Adds a note to an ``error`` of a training that memory or data workers caused; other errors stay as they are.

    Args:
        trainer: a :class:`~scripts.training.SemiSupervisedTrainer` whose run ended with ``error``.
        error: keeps its type, so that those who catch it still do.
    """
    causes = list(chain(error))
    workers = getattr(trainer.data_loader, "num_workers", 0)
    where = f"at iteration {trainer.state.iteration}"
    if any(out_of_memory(cause) for cause in causes):
        error.add_note(Advice(f"The memory ran out {where}. {_memory_advice(trainer, workers)}"))
    elif any(WORKER.search(str(cause)) for cause in causes):
        error.add_note(
            Advice(
                f"A data worker ended or did not answer {where}; the last checkpoint is kept and the same command goes "
                f"on. In this order: lower num_workers (now {workers}; 0 needs no workers), which saves their memory; "
                "look into the system's log for a process that was killed for its memory; raise worker_timeout (now "
                f"{getattr(trainer.data_loader, 'timeout', 0):g} s) if the storage is slow."
            )
        )


def _memory_advice(trainer: Any, workers: int) -> str:
    """The settings that lower the memory, those first that change the result least."""
    steps = []
    if trainer.state.device is not None and torch.device(trainer.state.device).type == "cuda":
        if not trainer.amp:
            steps.append("set amp to true")
    elif workers:
        steps.append(f"set num_workers to 0 (now {workers})")
    steps += ["set sw_batch_size to 1 if it was in a validation", "lower patch_size", *_batch_sizes(trainer)]
    steps += ["lower base_filters", "set train#dataset#cache_rate and train#unlabeled_dataset#cache_rate to 0 if the"]
    steps[-1] += " volumes do not fit into the machine's memory"
    return "Settings that lower it, in this order: " + "; ".join(steps) + "."


def _batch_sizes(trainer: Any) -> list[str]:
    names = {"unlabeled_batch_size": trainer.unlabeled_data_loader, "labeled_batch_size": trainer.data_loader}
    sizes = {name: getattr(getattr(loader, "batch_sampler", None), "batch_size", None) for name, loader in names.items()}
    return [f"lower {name} (now {size})" for name, size in sizes.items() if size and size > 1]
