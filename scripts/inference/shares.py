"""Shares: the cases that one of several processes segments, which torchrun or an array of jobs started."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Sequence
from typing import Any

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
    if LAUNCHED in os.environ and world_size() == 1:
        number, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    else:
        number, processes = rank(), world_size()
    return (k - 1) * processes + number + 1, n * processes


def part_of(cases: Sequence[Any], share: Share) -> list[Any]:
    """Every n-th of ``cases``, from the k-th on, so that neighbours, which are often alike in size, are shared out."""
    k, n = share
    return list(cases[k - 1 :: n])


def wait_for_launched() -> None:
    """Returns when all processes of a torchrun have come here: it ends all others with the first that ends badly."""
    if LAUNCHED in os.environ and world_size() == 1:
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
        dist.barrier()
        dist.destroy_process_group()
