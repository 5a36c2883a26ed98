"""Shares: the cases that one of several processes segments, which torchrun or an array of jobs started."""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from scripts.errors import UserError
from scripts.ranks import rank, world_size

Share = tuple[int, int]
# Set by torchrun in every process that it starts.
LAUNCHED = "TORCHELASTIC_RUN_ID"


def share_of_process(share: str | None = None) -> Share:
    """The share of this process as (k, n), 1 <= k <= n: the k-th of n parts.

    torchrun's processes divide what they are given among each other; so do those of a process group.

    Args:
        share: "k/n"; None for everything.

    Raises:
        UserError: when it is none of these.

    Example:
        >>> share_of_process("3/64")
        (3, 64)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", str(share or "1/1").strip())
    k, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= k <= n:
        raise UserError(f"share is {share!r}; it is k/n for the k-th of n parts of the cases, such as 1/64 or 64/64.")
    number, processes = place_of_process()
    return (k - 1) * processes + number + 1, n * processes


def part_of(cases: Sequence[Any], share: Share) -> list[Any]:
    """Every n-th of ``cases``, from the k-th on, so that neighbours, which are often alike in size, are shared out."""
    k, n = share
    return list(cases[k - 1 :: n])


def place_of_process() -> tuple[int, int]:
    """The number of this process, from 0, and how many torchrun has started or its process group has; else (0, 1)."""
    if LAUNCHED in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return rank(), world_size()


def totals(*counts: int) -> list[int]:
    """The sums of ``counts`` over these processes, when all have come here: torchrun ends all if one ends badly."""
    sums, launched = torch.tensor(counts), LAUNCHED in os.environ and not dist.is_initialized()
    if launched:
        hook = sys.excepthook
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
        sys.excepthook = hook  # torch's loses the message of an error whose hook ends the process with a status
    if dist.is_initialized():
        dist.all_reduce(sums)
    if launched:
        dist.destroy_process_group()
    return sums.tolist()
