"""Ranks: the processes of one run on several devices, one process per device, numbered from 0 by torchrun.

What `ignite.distributed` has is taken from there; without a process group it is that of a single process, rank 0 of 1.
"""

from __future__ import annotations

import datetime
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.distributed import barrier as wait_for_all
from ignite.distributed import get_rank as rank
from ignite.distributed import get_world_size as world_size
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from scripts.errors import UserError

__all__ = ["rank", "wait_for_all", "world_size"]
LAUNCHED_AS = "torchrun --standalone --nnodes=1 --nproc_per_node=2 -m monai.bundle run ..."


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
    # In a job of Slurm ignite takes its number instead of torchrun's, which is not there or that of torchrun itself.
    os.environ["SLURM_LOCALID"] = os.environ.get("LOCAL_RANK", "0")
    # torchrun keeps its store when it restarts a run, and with it the addresses of the processes before.
    store, number, count = next(rendezvous("env://"))
    store = dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    # Not by ignite, which knows one backend for both.
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    idist.sync()
    if rank() > 0:
        logging.disable(logging.INFO)  # every line would come once from each process; warnings still do


def end_processes() -> None:
    """Leaves the processes that :func:`start_processes` joined."""
    idist.finalize()
    logging.disable(logging.NOTSET)


def any_rank(condition: bool) -> bool:
    """Whether ``condition`` is true in any process."""
    if world_size() == 1:
        return condition
    found = torch.tensor(int(condition))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def gathered(value: Any) -> list[Any]:
    """``value``, a list or dictionary, of every process, in the order of their ranks."""
    values: Any = idist.all_gather(value)
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


def replica(module: torch.nn.Module) -> torch.nn.Module:
    """``module`` in DistributedDataParallel, which starts from the weights of rank 0; as it is in a single process.

    Every iteration searches the graph for weights that the loss leaves out. Without it torch would sort the gradients
    anew behind the first iteration of every start, and three processes or more would round differently after a resume.
    Buffers are left to :func:`average`.
    """
    if world_size() == 1:
        return module
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of weights of one voxel, in channels_last
    return DistributedDataParallel(module, forward_sync_buffers=False, find_unused_parameters=True)


@torch.no_grad()
def average(tensors: Iterable[torch.Tensor]) -> None:
    """Replaces the tensors, of one data type, by their means over the processes, in place and in one message."""
    group = list(tensors)
    if world_size() == 1 or not group:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in group])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(group, flat.split([tensor.numel() for tensor in group])):
        tensor.copy_(mean.reshape(tensor.shape))
