"""Normalization: exchanges a network's BatchNorm for one that does not mix the crops of a batch.

BatchNorm normalises labeled crops with statistics to which the unlabeled crops of the batch contribute. Where nothing
supervises these yet, their activations drift, and with them the statistics that the running averages keep for inference
(docs/methods/dbisl.md has the figures).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from scripts.errors import UserError

from .layers import GroupNorm

NORMALIZATIONS = ("batch", "group", "instance")
GROUPS = 8


def set_normalization(network: nn.Module, kind: str) -> None:
    """Exchanges every BatchNorm3d of ``network`` in place; the number of parameters stays the same.

    Args:
        network: built with BatchNorm, as the papers' V-Net.
        kind: "batch" leaves it; "group" puts group normalisation with up to 8 groups; "instance" normalises every
            channel of a crop by itself, for which the coarsest level needs more than one voxel.

    Raises:
        UserError: when ``kind`` is unknown.
    """
    _check(kind)
    if kind == "batch":
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(parent, name, _normalization(kind, child.num_features))


def monai_normalization(kind: str, channels: int) -> str | tuple[str, dict[str, Any]]:
    """The normalisation in the form that MONAI's networks take, with scale and shift whatever its kind.

    Args:
        kind: as in :func:`set_normalization`.
        channels: at full resolution, of which those of all levels are multiples.

    Raises:
        UserError: when ``kind`` is unknown.
    """
    _check(kind)
    if kind == "batch":
        return kind
    return kind, {"affine": True} if kind == "instance" else {"num_groups": math.gcd(GROUPS, channels)}


def synchronize_batch_norm(network: nn.Module, *, enabled: bool, device: torch.device) -> nn.Module:
    """The network with SyncBatchNorm in place of BatchNorm: statistics of the crops of all processes of a run.

    Names and shapes of the weights stay the same.

    Args:
        network: any; without BatchNorm it is returned as it is.
        enabled: False returns the network as it is, each process then normalises its own share of the batch.
        device: that the network is trained on.

    Raises:
        UserError: when it is enabled on the CPU, for which torch has no SyncBatchNorm.
    """
    if not enabled:
        return network
    if device.type != "cuda":
        raise UserError(
            f"sync_batchnorm is true and the device is {device}: torch has SyncBatchNorm for GPUs only. Set it to "
            "false, or normalization to group, which does not depend on the other crops of the batch."
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def _check(kind: str) -> None:
    if kind not in NORMALIZATIONS:
        raise UserError(f"normalization is {kind!r}; it is one of {', '.join(NORMALIZATIONS)}.")


def _normalization(kind: str, channels: int) -> nn.Module:
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    return GroupNorm(math.gcd(GROUPS, channels), channels)
