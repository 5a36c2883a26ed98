"""Tests of a training step on the meta device: no value is read on the host, and no tensor is made on another device.

A tensor there has a shape and no values: reading one (``.item()``, ``bool(tensor)``, ``nonzero``) is an error, which on
a GPU would be a wait for the device, and so is mixing it with a tensor of the CPU.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import ROOT, merged
from monai.utils import set_determinism

METHODS = sorted(path.stem for path in (ROOT / "configs/methods").glob("*.json"))
# What their programs do on the host, once per iteration.
READS_VALUES = {"dbisl_paper": "the cascade stops where no voxel is left to be reached"}
SHAPE = (1, 16, 16, 16)


@pytest.mark.parametrize("method", METHODS)
def test_step_reads_no_value_and_stays_on_its_device(method, monkeypatch):
    # It has no autocast to switch off.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    parser = merged("configs/train.json", f"configs/methods/{method}.json")
    parser.update({"base_filters": 2, "max_iterations": 10, "device": torch.device("meta")})
    network, objective = (parser.get_parsed_content(name) for name in ("network", "objective"))
    objective.to("meta")
    network.train()
    try:
        unlabeled = torch.empty(parser["unlabeled_batch_size"], *SHAPE, device="meta")
        labeled = {"image": torch.empty(2, *SHAPE, device="meta"), "label": torch.empty(2, *SHAPE, device="meta")}
        if method in READS_VALUES:
            pytest.skip(READS_VALUES[method])
        targets = objective.views(labeled, {"image": unlabeled}, 5)
        loss = objective(objective.predict(network, targets["image"]), targets, 5)
        loss.total.backward()
        objective.after_step(5)
        assert loss.total.device.type == "meta" and all(w.grad is not None for w in network.parameters())
    finally:
        set_determinism(seed=None)
