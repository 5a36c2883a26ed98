"""Iteration: the bundle's trainer against a bare loop, and DBiSL against the loop that DTC's program has."""

from __future__ import annotations

import tempfile
import time
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.losses import DiceLoss
from scipy.ndimage import distance_transform_edt

from benchmarks.dynamics import parse
from benchmarks.measure import medians, row, status_megabytes
from benchmarks.transform import blobs
from scripts.demo.dataset import make_dataset
from scripts.networks import VNet

PATCH = (48, 48, 32)
FILTERS = 16
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
        }
        parser = parse(["configs/train.json", "configs/data/demo.json"], overrides)
        trainer = parser.get_parsed_content("train#trainer")
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
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


def level_sets(label: np.ndarray) -> np.ndarray:
    """Signed distances (B, 1, H, W, D) of labels of that shape, in [-1, 1], by scipy, as DTC's program makes them."""
    maps = np.zeros(label.shape, np.float32)
    for mask, out in zip(label[:, 0] > 0, maps[:, 0]):
        outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
        out[:] = outside / outside.max() - inside / inside.max()
    return maps


def method_row(repeats: int) -> dict[str, Any]:
    """DBiSL with the settings of configs/train.json against DTC's loop on the same crops, two labeled and two not.

    DTC (Luo et al. 2021): a V-Net with one decoder in the default memory format, a Dice loss, the distance maps made
    by scipy within the loop, its mean squared error, and the consistency of both heads; SGD.
    """
    label = blobs(4, 1, PATCH)
    image = label + 0.3 * torch.randn(label.shape, generator=torch.Generator().manual_seed(0))
    parser = parse(["configs/train.json"], {"patch_size": PATCH, "base_filters": FILTERS, "max_iterations": 1000})
    parser["device"] = torch.device("cpu")
    network, objective = parser.get_parsed_content("network"), parser.get_parsed_content("objective")
    optimizer = parser.get_parsed_content("optimizer")

    def dbisl() -> None:
        optimizer.zero_grad()
        images = image.to(memory_format=torch.channels_last_3d)
        # Past the ramps, when all terms count.
        objective(network(images), {"label": label[:LABELED]}, 1000).total.backward()
        optimizer.step()

    vnet = VNet(base_filters=FILTERS, tasks=("segmentation", "distance"))
    sgd = torch.optim.SGD(vnet.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    dice = DiceLoss(sigmoid=True)

    def dtc() -> None:
        heads = vnet(image)
        expected = torch.from_numpy(level_sets(label[:LABELED].numpy()))
        loss = dice(heads["logits"][:LABELED], label[:LABELED]) + 0.3 * F.mse_loss(
            heads["distance"][:LABELED], expected
        )
        loss = loss + 0.1 * F.mse_loss(torch.sigmoid(-1500 * heads["distance"]), torch.sigmoid(heads["logits"]))
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    times = medians({"dbisl": dbisl, "dtc": dtc}, repeats)
    what = f"one iteration of DBiSL, 4x1x{'x'.join(map(str, PATCH))}, {FILTERS} filters"
    return row(what, times["dbisl"], "DTC's loop, one decoder", times["dtc"])
