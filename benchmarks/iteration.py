"""Iteration: the bundle's trainer against a bare loop, and DBiSL against the loop that DTC's program has."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.losses import DiceLoss
from scipy.ndimage import distance_transform_edt
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.dynamics import parse
from benchmarks.measure import clock, medians, row, status_megabytes
from benchmarks.scale import SCALES, Scale
from benchmarks.transform import blobs
from scripts.networks import VNet
from scripts.networks.layers import GroupNorm, PointwiseConv3d
from tools.demo.dataset import make_dataset

LABELED = 2


def trainer_row(iterations: int) -> dict[str, Any]:
    """The trainer with all its handlers against a bare loop over the same network, objective and crops."""
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(output_dir=f"{folder}/data", num_unlabeled=8, num_validation=0, num_test=0)
        overrides = {
            "dataset_dir": f"{folder}/data",
            "output_dir": folder,
            "ckpt_dir": f"{folder}/models",
            "max_iterations": iterations,
            "device": torch.device("cpu"),
        }
        parser = parse(["configs/train.json", "configs/data/demo.json"], overrides)
        trainer = parser.get_parsed_content("train#trainer")
        ticks: list[float] = []
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: ticks.append(clock()))
        trainer.run()

        network, objective = trainer.network, trainer.objective
        optimizer = trainer.optimizer
        streams = zip(iter(trainer.data_loader), iter(trainer.unlabeled_data_loader))
        bare: list[float] = []
        for iteration, (labeled, unlabeled) in zip(range(iterations), streams):
            images = torch.cat([labeled["image"], unlabeled["image"]]).to(memory_format=torch.channels_last_3d)
            optimizer.zero_grad()
            objective(network(images), {"label": labeled["label"]}, iteration).total.backward()
            optimizer.step()
            bare.append(clock())
    ours, reference = float(median(np.diff(ticks))), float(median(np.diff(bare)))
    name = "bare PyTorch loop, same crops"
    return row("one training iteration, demo preset", ours, name, reference, peak_mb=status_megabytes("VmHWM"))


def flops_of(work: Callable[[], Any]) -> float:
    """Floating-point operations of the convolutions and matrix products of one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def level_sets(label: np.ndarray) -> np.ndarray:
    """Signed distances (B, 1, H, W, D) of labels of that shape, in [-1, 1], by scipy, as DTC's program makes them."""
    maps = np.zeros(label.shape, np.float32)
    for mask, out in zip(label[:, 0] > 0, maps[:, 0]):
        outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
        out[:] = outside / outside.max() - inside / inside.max()
    return maps


def method_row(
    repeats: int, *, scale: Scale = SCALES["cpu"], device: torch.device | str = "cpu", amp: bool = False
) -> dict[str, Any]:
    """DBiSL with the settings of configs/train.json against DTC's loop on the same crops, two labeled and two not.

    DTC (Luo et al. 2021): a V-Net with one decoder in the default memory format, a Dice loss, the distance maps made
    by scipy within the loop, its mean squared error, and the consistency of both heads; SGD, float32.

    Args:
        repeats: of each.
        scale: crop and filters.
        device: of both networks.
        amp: mixed precision of DBiSL.
    """
    patch, filters = scale.method, scale.method_filters
    label = blobs(4, 1, patch)
    image = label + 0.3 * torch.randn(label.shape, generator=torch.Generator().manual_seed(0))
    label, image = label.to(device), image.to(device)
    dbisl = dbisl_iteration(image, label[:LABELED], filters=filters, amp=amp)

    vnet: Any = VNet(base_filters=filters, tasks=("segmentation", "distance")).to(device)
    sgd = torch.optim.SGD(vnet.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    dice = DiceLoss(sigmoid=True)

    def dtc() -> None:
        heads = vnet(image)
        expected = torch.from_numpy(level_sets(label[:LABELED].cpu().numpy())).to(device)
        loss = dice(heads["logits"][:LABELED], label[:LABELED]) + 0.3 * F.mse_loss(
            heads["distance"][:LABELED], expected
        )
        loss = loss + 0.1 * F.mse_loss(torch.sigmoid(-1500 * heads["distance"]), torch.sigmoid(heads["logits"]))
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    flops = [flops_of(work) for work in (dbisl, dtc)]  # and their first calls
    times = medians({"dbisl": dbisl, "dtc": dtc}, repeats)
    what = f"one iteration of DBiSL, 4x1x{'x'.join(map(str, patch))}, {filters} filters"
    return row(
        f"{what}, mixed precision" if amp else what,
        times["dbisl"],
        "DTC's loop, one decoder",
        times["dtc"],
        accuracy=f"{flops[0] / flops[1]:.2f} times the arithmetic",
    )


def dbisl_iteration(
    image: torch.Tensor,
    label: torch.Tensor,
    *,
    filters: int,
    amp: bool = False,
    memory_format: torch.memory_format = torch.channels_last_3d,
    compiled: bool = False,
) -> Callable[[], None]:
    """One iteration of DBiSL as configs/train.json has it, without a trainer, past the ramps, when all terms count.

    Args:
        image: (B, 1, H, W, D), float32, on the device to train on.
        label: (L, 1, H, W, D), 0 or 1, of the first L crops, on the same device.
        filters: base filters.
        amp: mixed precision: float16 with a scaler on a GPU, bfloat16 on a CPU.
        memory_format: of the network and the image.
        compiled: through torch.compile.
    """
    parser = parse(["configs/train.json"], {"base_filters": filters, "max_iterations": 1000})
    parser["device"] = image.device
    network, objective = parser.get_parsed_content("network"), parser.get_parsed_content("objective")
    network.to(memory_format=memory_format)
    optimizer = parser.get_parsed_content("optimizer")
    scaler = torch.amp.GradScaler(image.device.type, enabled=amp and image.device.type == "cuda")
    call = torch.compile(network) if compiled else network

    def iterate() -> None:
        optimizer.zero_grad()
        with torch.autocast(image.device.type, enabled=amp):
            heads = call(image.to(memory_format=memory_format))
        scaler.scale(objective(heads, {"label": label}, 1000).total).backward()
        scaler.step(optimizer)
        scaler.update()

    return iterate


def forward_and_backward(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> None:
    layer(x).backward(gradient)


def layer_rows(repeats: int, *, scale: Scale, device: torch.device | str) -> list[dict[str, Any]]:
    """Layers of the network, forward and backward, in channels_last_3d, against torch's layer of the same values."""
    rows = []
    for filters in scale.training_filters:
        shape = (4, filters, *scale.training)
        layers: dict[str, tuple[Any, Any]] = {
            "group normalisation": (
                GroupNorm(math.gcd(8, filters), filters),
                nn.GroupNorm(math.gcd(8, filters), filters),
            ),
            "head": (PointwiseConv3d(filters, 1), nn.Conv3d(filters, 1, 1)),
        }
        for name, pair in layers.items():
            x = torch.randn(shape, device=device).to(memory_format=torch.channels_last_3d).requires_grad_()
            works = {}
            for which, layer in zip(("ours", "torch"), pair):
                layer.to(device)
                works[which] = partial(forward_and_backward, layer, x, torch.randn_like(layer(x)))
            times = medians(works, 4 * repeats)
            what = f"{name}, {'x'.join(map(str, shape))}"
            rows.append(row(what, times["ours"], "torch's layer", times["torch"]))
    return rows


def variant_rows(repeats: int, *, scale: Scale, device: torch.device | str) -> list[dict[str, Any]]:
    """DBiSL's iteration in both memory formats and precisions, on a GPU compiled too, against the first of them."""
    label = blobs(4, 1, scale.method).to(device)
    image = label + 0.3 * torch.randn(label.shape, generator=torch.Generator().manual_seed(0)).to(device)
    works: dict[str, Callable[[], None]] = {}
    for compiled in (False, True) if image.device.type == "cuda" else (False,):
        for amp in (False, True):
            for name, memory_format in (
                ("default", torch.contiguous_format),
                ("channels-last", torch.channels_last_3d),
            ):
                words = [f"{name} memory format", *["mixed precision"] * amp, *["torch.compile"] * compiled]
                works[", ".join(words)] = dbisl_iteration(
                    image,
                    label[:LABELED],
                    filters=scale.method_filters,
                    amp=amp,
                    memory_format=memory_format,
                    compiled=compiled,
                )
    for work in works.values():
        work()
    times = medians(works, repeats)
    (first, reference), *others = times.items()
    return [row(f"iteration of DBiSL, {name}", time, first, reference) for name, time in others]
