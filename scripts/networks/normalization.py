"""Normalization: exchanges a network's BatchNorm, or mends what the mixture of crops in a batch does to it.

BatchNorm normalises labeled crops with statistics to which the unlabeled crops of the batch contribute. The activations
of the few labeled crops, which the network knows by heart, and of the unlabeled ones drift apart; the statistics of
their mixture, which the running averages keep for inference, fit neither (docs/methods/dbisl.md has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.networks import eval_mode
from torch import nn

from scripts.errors import UserError
from scripts.ranks import world_size

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
                n = child.num_features
                layer = nn.InstanceNorm3d(n, affine=True) if kind == "instance" else GroupNorm(math.gcd(GROUPS, n), n)
                setattr(parent, name, layer)


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


class StreamBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm that normalises the labeled crops, which come first in a batch, and the others apart.

    The running statistics are those of the others, which are more like new images. In evaluation mode, and for a batch
    of one kind of crop, it is BatchNorm. Made by :func:`separate_streams`.
    """

    labeled = 0  # labeled crops of the batch; the trainer sets it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D), each part of the batch with mean 0 and variance 1 in every channel, scaled and shifted."""
        if not self.training or not 0 < self.labeled < len(x):
            return super().forward(x)
        first = nn.functional.batch_norm(x[: self.labeled], None, None, self.weight, self.bias, True, 0.0, self.eps)
        return torch.cat([first, super().forward(x[self.labeled :])])


def separate_streams(network: nn.Module) -> nn.Module:
    """The network with :class:`StreamBatchNorm3d` in place of every BatchNorm; its weights keep their names.

    Args:
        network: with ``normalization: batch``; changed in place.

    Raises:
        UserError: when the network has no BatchNorm.
    """
    layers: list[Any] = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    if not layers:
        raise UserError("the network has no BatchNorm whose streams could be separated: set normalization to batch.")
    for layer in layers:
        layer.__class__ = StreamBatchNorm3d
    return network


class ReestimatedStatistics:
    """Handler: at the end of every epoch BatchNorm's running statistics become those of unlabeled crops.

    It comes before validation and weights are written. Dropout is off meanwhile, as at inference. A method that runs
    the network or a teacher in evaluation mode during training (BCP, CPS, UniMatch, AD-MT, DBiSL on mixed crops) reads
    these statistics; the training of the others does not depend on them.

    Args:
        network: with ``normalization: batch``; without BatchNorm nothing is done.
        crops: batches with an "image", (B, channels, H, W, D); the first ``batches`` of them, always the same.
        batches: their number.

    Raises:
        UserError: when there are no crops, or in a run of several processes, each of which would have its own.
    """

    def __init__(self, network: nn.Module, crops: Iterable[dict[str, torch.Tensor]] | None, batches: int = 20) -> None:
        if crops is None:
            raise UserError("the running statistics are of unlabeled crops and there are none: leave the overlay out.")
        if world_size() > 1:
            raise UserError("only one process can re-estimate statistics: leave the overlay out on several devices.")
        self.network = network
        self.crops = crops
        self.batches = batches

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._at_the_end_of_an_epoch)

    def _at_the_end_of_an_epoch(self, engine: Engine) -> None:
        if engine.state.iteration % (engine.state.epoch_length or 1) == 0:
            self.estimate(engine.state.device)  # type: ignore[attr-defined]

    @torch.no_grad()
    def estimate(self, device: torch.device | str = "cpu") -> None:
        """Sets the running mean and variance of every BatchNorm to the mean of those of the batches."""
        layers = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm3d)]
        momentum = [layer.momentum for layer in layers]
        # To start an iterator draws a random number.
        with eval_mode(self.network), torch.random.fork_rng(devices=[]):
            for layer in layers:
                layer.reset_running_stats()
                layer.train().momentum = None  # the plain mean
            for batch in islice(self.crops, self.batches if layers else 0):
                self.network.forward_heads(batch["image"].as_subclass(torch.Tensor).to(device))  # type: ignore[operator]
            for layer, before in zip(layers, momentum):
                layer.eval().momentum = before


def _check(kind: str) -> None:
    if kind not in NORMALIZATIONS:
        raise UserError(f"normalization is {kind!r}; it is one of {', '.join(NORMALIZATIONS)}.")
