"""Ranks: the processes of one run on several devices, one process per device, numbered from 0 by torchrun.

Without a process group everything here is that of a single process, rank 0 of 1, and costs nothing.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from scripts.errors import UserError

LAUNCHED_AS = "torchrun --standalone --nnodes=1 --nproc_per_node=2 -m monai.bundle run ..."


def world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def device_of_process() -> torch.device:
    """The GPU with the local number of this process (LOCAL_RANK of torchrun); the CPU if there is no GPU.

    Raises:
        UserError: when more processes were started than there are GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, found = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= found:
        raise UserError(
            f"process {number} of this machine has no GPU, {found} found: --nproc_per_node is at most that."
        )
    return torch.device("cuda", number)


def start_processes(device: torch.device, *, timeout_minutes: float = 60) -> None:
    """Joins the processes that torchrun started: gloo on the CPU; on GPUs nccl, and gloo for tensors on the CPU.

    Args:
        device: of this process.
        timeout_minutes: how long a process waits for the others before it gives up; longer than a validation or the
            loading of the data takes.

    Raises:
        UserError: when torchrun did not start this process.
    """
    if "RANK" not in os.environ:
        raise UserError(f"this config is for several processes, and this one was started alone: use {LAUNCHED_AS}")
    if dist.is_initialized():
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=timeout_minutes))
    if rank() > 0:
        logging.disable(logging.INFO)  # every line would come once from each process; warnings still do


def end_processes() -> None:
    """Leaves the group of processes that :func:`start_processes` joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
        logging.disable(logging.NOTSET)


def wait_for_all() -> None:
    """Returns when every process has called it."""
    if world_size() > 1:
        dist.barrier()


def any_rank(condition: bool) -> bool:
    """Whether ``condition`` is true in any process."""
    if world_size() == 1:
        return condition
    found = torch.tensor(int(condition))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def gathered(value: Any) -> list[Any]:
    """``value`` of every process, in the order of the ranks."""
    values: list[Any] = [None] * world_size()
    if len(values) == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values


def check_equal(settings: Mapping[str, Any]) -> None:
    """Raises if the processes of a run have different settings.

    Raises:
        UserError: in every process, with the setting and both values.
    """
    first, *others = gathered(dict(settings))
    for number, other in enumerate(others, start=1):
        for name, value in first.items():
            if other.get(name) != value:
                raise UserError(
                    f"{name} is {value} in process 0 and {other.get(name)} in process {number}: every process takes an "
                    "equal share of each batch and continues at the same iteration. Start all with the same command, "
                    "and give machines a common output_dir."
                )


def share_of(cases: Sequence[Any]) -> Sequence[Any]:
    """The cases of this process, consecutive ones: the shares in the order of the ranks give ``cases``.

    Raises:
        UserError: when there are fewer cases than processes.
    """
    count, size = len(cases), world_size()
    if count < size:
        raise UserError(f"{count} cases cannot be shared out to {size} processes: start at most {count}.")
    return cases[count * rank() // size : count * (rank() + 1) // size]


def share_for_a_mean(cases: Sequence[Any]) -> Sequence[Any]:
    """Like :func:`share_of`, but all cases in every process if there are too few; this does not change their mean.

    MONAI's metrics gather what the processes measured, so that all of them know the same mean.
    """
    return cases if len(cases) < world_size() else share_of(cases)


def handlers_of_rank(handlers: Sequence[Any], every_rank: Iterable[str]) -> list[Any]:
    """All handlers in rank 0, otherwise those with a class in ``every_rank``, so that one process writes files.

    Args:
        handlers: of an engine.
        every_rank: names of classes that change the training or communicate.
    """
    names = set(every_rank)
    return [handler for handler in handlers if rank() == 0 or type(handler).__name__ in names]


@torch.no_grad()
def average(tensors: Iterable[torch.Tensor]) -> None:
    """Replaces the tensors, in place, by their means over the processes."""

    def mean(flat: torch.Tensor) -> None:
        dist.all_reduce(flat)
        flat /= world_size()

    _together(tensors, mean)


@torch.no_grad()
def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Replaces the tensors, in place, by those of rank 0."""
    _together(tensors, lambda flat: dist.broadcast(flat, 0))


def _together(tensors: Iterable[torch.Tensor], operation: Callable[[torch.Tensor], Any]) -> None:
    """Runs one operation on one vector per data type; a network's hundred small tensors would need a message each."""
    if world_size() == 1:
        return
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    for group in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        operation(flat)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group])):
            tensor.copy_(part.reshape(tensor.shape))
