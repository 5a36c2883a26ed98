"""Memory: predicts what a training iteration takes at its peak, from the network's structure, and measures its time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch

from scripts.data import LabelCoding
from scripts.distance import DistanceToSegmentation, ExactDistance, SegmentationToDistance
from scripts.methods import DBiSLObjective
from scripts.networks import DualTaskVNet
from scripts.networks.blocks import DECODER_CONVOLUTIONS, ENCODER_CONVOLUTIONS

FLOAT = 4  # bytes
# Maps of full resolution, in units of base_filters, that the backward pass holds beside what the forward pass kept:
# gradients, and the convolutions' rearranged copies. Measured on the CPU, as are the two constants below.
WORKING_MAPS = 16
# Floats per voxel and class that the objective keeps for its nine terms.
OBJECTIVE_MAPS = 22
# Python with its libraries; and, unmeasured, a CUDA context with its libraries' workspace.
BASE_BYTES = {"cpu": 0.65e9, "gpu": 1.5e9}
# Of weights, their gradients and the momentum, and one temporary copy in the optimizer's step.
COPIES_OF_WEIGHTS = 4
TIMED_PATCH = (32, 32, 32)


def stored_maps() -> float:
    """Maps of full resolution, in units of base_filters, that the forward pass of DualTaskVNet keeps for backward.

    A convolution unit keeps two: the convolution's output for BatchNorm, and the ReLU's output, which is also the next
    one's input. Level l has 2^l times the channels and 8^-l of the voxels: each map counts 4^-l. An upsampling is a
    unit, the sum with the skip connection one map more, the trilinear one keeps its enlarged input of twice the
    channels besides, and the dropout before the heads one.
    """
    total = 0.0
    levels = len(ENCODER_CONVOLUTIONS)
    for level, repeats in enumerate(ENCODER_CONVOLUTIONS):
        downsampling = 1 if level > 0 else 0
        total += 2 * (repeats + downsampling) / 4**level
    total += 1 / 4 ** (levels - 1)  # dropout at the bottleneck
    for level, repeats in zip(range(levels - 2, -1, -1), DECODER_CONVOLUTIONS):
        decoder = 2 * (repeats + 1) + 1
        total += (2 * decoder + 2) / 4**level
    return total + 2  # dropout before the heads of both decoders


@lru_cache
def parameter_count(in_channels: int, num_classes: int, base_filters: int) -> int:
    """Parameters of DualTaskVNet; none is allocated."""
    with torch.device("meta"):
        network = DualTaskVNet(in_channels, num_classes, base_filters)
    return sum(parameter.numel() for parameter in network.parameters())


def training_bytes(
    *,
    patch_size: Sequence[int],
    crops: int,
    base_filters: int,
    in_channels: int = 1,
    num_classes: int = 1,
    device: str = "cpu",
) -> float:
    """Predicted peak of DBiSL's training in float32, cached volumes not included.

    With V = crops x voxels of the patch, f filters, C classes and P parameters:

        base + 4 bytes x (V x (f x (stored_maps() + WORKING_MAPS) + OBJECTIVE_MAPS x C + in_channels) + 4 P)

    Args:
        patch_size: voxels.
        crops: labeled and unlabeled crops in a batch together.
        base_filters: as in the config.
        in_channels: channels of the image.
        num_classes: foreground classes.
        device: "cpu" or "gpu", for what the process takes before the first iteration.
    """
    parameters = parameter_count(in_channels, num_classes, base_filters)
    maps = base_filters * (stored_maps() + WORKING_MAPS) + OBJECTIVE_MAPS * num_classes + in_channels
    return BASE_BYTES[device] + FLOAT * (crops * prod(patch_size) * maps + COPIES_OF_WEIGHTS * parameters)


class TrainingStep:
    """A training iteration of DBiSL on random numbers: to see what it costs, not to learn anything.

    Args:
        patch_size: voxels.
        labeled: crops.
        unlabeled: crops.
        base_filters: as in the config.
        in_channels: channels of the image.
        num_classes: foreground classes.
        device: to run on.
    """

    def __init__(
        self,
        *,
        patch_size: Sequence[int],
        labeled: int,
        unlabeled: int,
        base_filters: int,
        in_channels: int = 1,
        num_classes: int = 1,
        device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        network = DualTaskVNet(in_channels, num_classes, base_filters)
        placement: dict[str, Any] = {"device": self.device, "memory_format": torch.channels_last_3d}
        self.network = network.to(**placement).train()
        self.objective = DBiSLObjective(
            label_coding=LabelCoding(num_classes),
            segmentation_to_distance=SegmentationToDistance(ExactDistance()).to(self.device),
            distance_to_segmentation=DistanceToSegmentation(),
            weights=dict.fromkeys(DBiSLObjective.TERMS, 1.0),
            r2s_cross_entropy=False,
        )
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)
        self.shapes = ((labeled + unlabeled, in_channels, *patch_size), (labeled, 1, *patch_size))

    def __call__(self) -> None:
        image = torch.randn(self.shapes[0], device=self.device).to(memory_format=torch.channels_last_3d)
        label = (torch.rand(self.shapes[1], device=self.device) > 0.8).float()
        loss = self.objective(self.network(image), {"label": label}, 0)
        self.optimizer.zero_grad()
        loss.total.backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def seconds_per_iteration(*, patch_size: Sequence[int], repeats: int = 2, **settings: Any) -> float:
    """Seconds of one iteration on this machine, from iterations on ``TIMED_PATCH`` in proportion to the voxels.

    Args:
        patch_size: of the training that is planned.
        repeats: timed iterations; the fastest counts.
        settings: of :class:`TrainingStep`.
    """
    step = TrainingStep(patch_size=TIMED_PATCH, **settings)
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times) * prod(patch_size) / prod(TIMED_PATCH)
