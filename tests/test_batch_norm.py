"""Tests of scripts/networks/normalization.py: statistics of the streams apart, and estimated anew."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from conftest import merged, small
from torch import nn

from scripts.errors import UserError
from scripts.networks import DualTaskVNet, ReestimatedStatistics, VNet, separate_streams

TRAIN = "configs/train.json"
APART, REESTIMATED = (f"configs/networks/batch_norm_{kind}.json" for kind in ("apart", "reestimated"))


class Single(nn.Module):
    """One BatchNorm and a dropout, as a network with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(2)
        self.dropout = nn.Dropout3d(0.5)

    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.norm(self.dropout(x))}


def crops(seed: int, number: int = 4, shift: float = 0.0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(loc=shift, scale=1 + shift, size=(number, 2, 3, 4, 5))
    return torch.tensor(values, dtype=torch.float32)


def test_labeled_and_other_crops_have_statistics_of_their_own_and_the_running_ones_are_the_others():
    layer = separate_streams(nn.Sequential(nn.BatchNorm3d(2))).train()
    layer[0].labeled = 1
    labeled, others = crops(0, 1), crops(1, 3, shift=4)
    result = layer(torch.cat([labeled, others]))
    for part, x in ((result[:1], labeled), (result[1:], others)):
        mean, variance = (f(x.numpy(), axis=(0, 2, 3, 4), keepdims=True) for f in (np.mean, np.var))
        np.testing.assert_allclose(part.detach().numpy(), (x.numpy() - mean) / np.sqrt(variance + 1e-5), atol=1e-4)
    expected = 0.1 * others.mean((0, 2, 3, 4))
    torch.testing.assert_close(layer[0].running_mean, expected)


def test_in_evaluation_and_for_one_kind_of_crop_it_is_batch_norm():
    plain, apart = nn.Sequential(nn.BatchNorm3d(2)), separate_streams(nn.Sequential(nn.BatchNorm3d(2)))
    apart[0].labeled = 2
    for x in (crops(2, 2), crops(3, 1)):
        torch.testing.assert_close(apart.train()(x), plain.train()(x))
    torch.testing.assert_close(apart.eval()(crops(4)), plain.eval()(crops(4)))
    assert apart.state_dict().keys() == plain.state_dict().keys()


def test_separation_needs_a_batch_norm():
    with pytest.raises(ValueError, match="normalization to batch"):
        separate_streams(VNet(base_filters=2, normalization="group"))


def test_estimated_statistics_are_the_mean_over_the_batches_without_dropout():
    torch.manual_seed(0)
    network = Single().train()
    network.forward_heads(crops(5, shift=100))
    batches = [{"image": crops(seed, shift=seed)} for seed in range(4)]
    state, weights = torch.get_rng_state(), network.norm.weight.clone()
    ReestimatedStatistics(network, batches, batches=3).estimate()
    means = [b["image"].mean((0, 2, 3, 4)) for b in batches[:3]]
    variances = [b["image"].transpose(0, 1).flatten(1).var(1) for b in batches[:3]]
    torch.testing.assert_close(network.norm.running_mean, torch.stack(means).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network.norm.running_var, torch.stack(variances).mean(0), atol=1e-4, rtol=1e-4)
    # Nothing else has changed, and training goes on with the momentum that it had.
    assert network.training and network.norm.training and network.norm.momentum == 0.1
    assert torch.equal(network.norm.weight, weights) and torch.equal(torch.get_rng_state(), state)


def test_estimate_without_unlabeled_crops_is_refused():
    with pytest.raises(ValueError, match="unlabeled crops"):
        ReestimatedStatistics(DualTaskVNet(base_filters=2), None)


def test_estimate_in_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr("scripts.networks.normalization.world_size", lambda: 2)
    with pytest.raises(UserError):
        ReestimatedStatistics(DualTaskVNet(base_filters=2), [])


def train(workflow, tiny, folder, *overlays: str):
    bundle = workflow(
        TRAIN, *overlays, **small(tiny, folder, max_iterations=2, val_interval=1, normalization="batch", dropout=0.5)
    )
    bundle.initialize()
    bundle.run()
    with (folder / "training_log.csv").open(newline="", encoding="utf-8") as file:
        losses = [row["loss"] for row in csv.DictReader(file)]
    return losses, torch.load(folder / "models" / "model.pt", weights_only=True)


def test_overlays_train_and_their_weights_fit_the_plain_network(workflow, tiny, tmp_path):
    plain, weights = train(workflow, tiny, tmp_path / "plain")
    estimated, same = train(workflow, tiny, tmp_path / "estimated", REESTIMATED)
    apart, others = train(workflow, tiny, tmp_path / "apart", APART)
    # The estimate changes the running statistics and nothing of the training; the separation changes the training.
    assert estimated == plain != apart
    running = [name for name in weights if "running" in name]
    assert running and not any(torch.equal(weights[name], same[name]) for name in running)
    learned = [name for name in weights if name.endswith(("weight", "bias"))]
    assert all(torch.equal(weights[name], same[name]) for name in learned)
    assert weights.keys() == same.keys() == others.keys()
    network = merged(TRAIN)
    network.update(small(tiny, tmp_path, normalization="batch"))
    network.get_parsed_content("network_def").load_state_dict(others)
