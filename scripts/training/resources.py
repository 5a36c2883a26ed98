"""Resources: adds advice to the error when memory or disk run out, or another process dies or hangs."""

import errno
import re
from typing import Any

import torch

from scripts.errors import Advice, chain
from scripts.ranks import rank, world_size

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|CUDNN_STATUS_ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
FULL_DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota of its own
# What gloo and nccl say of a process that is gone or silent.
OTHER_PROCESS = re.compile(
    r"connection (closed|reset|refused)|timed? ?out|remote process exited|broken pipe", re.IGNORECASE
)
WORKER = re.compile(r"DataLoader (worker .* (is killed|exited unexpectedly)|timed out)")


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that the memory of the machine or of the GPU is exhausted."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and OUT_OF_MEMORY.search(str(error)) is not None


def advise_on_resources(trainer: Any, error: BaseException) -> None:
    """Adds a note to an ``error`` of a training that memory, disk, compiler, workers or another process caused.

    Other errors stay as they are.

    Args:
        trainer: a :class:`~scripts.training.SemiSupervisedTrainer` whose run ended with ``error``.
        error: keeps its type, so that those who catch it still do.
    """
    causes = list(chain(error))
    workers, timeout = (getattr(trainer.data_loader, name, 0) for name in ("num_workers", "timeout"))
    where = f"at iteration {trainer.state.iteration}"
    advice = ""
    if any(map(out_of_memory, causes)):
        on_gpu = any(isinstance(cause, torch.OutOfMemoryError) for cause in causes)
        steps = "; ".join(_steps(trainer, on_gpu=on_gpu, workers=workers))
        advice = (
            f"The memory of the {'GPU' if on_gpu else 'machine'} ran out {where}. "
            f"Settings that lower it, in this order: {steps}."
        )
    elif any(isinstance(cause, OSError) and cause.errno in FULL_DISK for cause in causes):
        advice = (
            f"The disk of output_dir or ckpt_dir was full {where}. Make room; the same command then continues from the "
            "last checkpoint."
        )
    elif any(_of_a_worker(cause, workers) for cause in causes):
        advice = (
            f"A data worker ended or did not answer {where}. In this order: lower num_workers (now {workers}; 0 is "
            "without), since each takes memory; look into the system's log for processes that were killed; "
            f"raise worker_timeout (now {timeout:g} s) if the storage is slow."
        )
    elif any(type(cause).__module__.startswith(("torch._dynamo", "torch._inductor")) for cause in causes):
        advice = (
            f"torch.compile failed {where}. It needs a C++ compiler on the CPU, and Triton on a GPU; set compile to "
            "false to train without."
        )
    elif world_size() > 1 and any(isinstance(c, RuntimeError) and OTHER_PROCESS.search(str(c)) for c in causes):
        advice = (
            f"Another process of this run ended, or did not answer, {where}; this is process {rank()} of "
            f'{world_size()}. Why it did, its own message says, or torchrun under "Root Cause". The same command '
            "continues from the last checkpoint."
        )
    if advice:
        error.add_note(Advice(advice))


def _of_a_worker(error: BaseException, workers: int) -> bool:
    # A worker that is killed while a batch is fetched from it shows as its socket's error before torch notices.
    return WORKER.search(str(error)) is not None or (workers > 0 and isinstance(error, (ConnectionError, EOFError)))


def _steps(trainer: Any, *, on_gpu: bool, workers: int) -> list[str]:
    """Settings that lower the memory, those first that change the result least."""
    cache = "cache_rate 0.3 (the other volumes are then read from files, crop by crop)"
    on_machine = [*([f"num_workers 0 (now {workers})"] if workers else []), cache]
    names = {"unlabeled_batch_size": trainer.unlabeled_data_loader, "labeled_batch_size": trainer.data_loader}
    sizes = {name: getattr(getattr(loader, "batch_sampler", None), "batch_size", 0) for name, loader in names.items()}
    return [
        *(([] if trainer.mixed_precision else ["amp true"]) if on_gpu else on_machine),
        *("sw_batch_size 1, if it was in a validation", "a smaller patch_size"),
        *(f"{name} {size // 2} (now {size})" for name, size in sizes.items() if size > 1),
        "a smaller base_filters",
    ]
