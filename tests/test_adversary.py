"""Tests of the adversarial objectives: the terms, who receives gradient, the adversary's steps and its state."""

from __future__ import annotations

import copy
import csv

import numpy as np
import pytest
import torch
from conftest import ROOT, small, write_dataset
from monai.bundle import ConfigParser
from torch import nn

from scripts.data import LabelCoding
from scripts.distance import ExactDistance, SegmentationToDistance
from scripts.methods.dan import DANObjective
from scripts.methods.sassnet import SASSNetObjective
from scripts.networks import Discriminator, VNet

METHODS = ["sassnet", "dan"]
LABELED, UNLABELED = 2, 1


class Echo(nn.Module):
    """A network without weights that predicts what it sees."""

    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x, "distance": torch.tanh(x)}

    forward = forward_heads


def make(method: str, *, classes: int = 1, dropout: float = 0.5, rate: float = 1e-3, **weights: float):
    """A small network and its objective; both from the same seed whenever it is called."""
    torch.manual_seed(0)
    sassnet = method == "sassnet"
    network = VNet(1, classes, 2, tasks=("segmentation", "distance") if sassnet else ("segmentation",))
    discriminator = Discriminator(
        classes, 1 if sassnet else 0, 4, levels=4 if sassnet else 3, per_region=not sassnet, dropout=dropout
    )
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=rate)
    parts = (LabelCoding(classes), network, discriminator, optimizer)
    if sassnet:
        return network, SASSNetObjective(*parts, SegmentationToDistance(ExactDistance(), factor=1), weights)
    return network, DANObjective(*parts, weights)


def batch(classes: int = 1) -> dict[str, torch.Tensor]:
    """Three crops, of which two have a label; the unlabeled one is inverted, so that it can be told from the others."""
    label = torch.zeros(LABELED, 1, 16, 16, 16)
    label[:, :, 4:9, 5:11, 3:12] = 1
    label[:, :, 9:13, 5:11, 3:12] = classes
    noise = torch.randn(LABELED + UNLABELED, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    image = torch.cat([2 * label, 2 - 2 * label[:UNLABELED]]) + 0.3 * noise
    return {"label": label, "image": image}


def float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def dice(p: np.ndarray, y: np.ndarray) -> float:
    """Joint over the crops, mean over the classes."""
    axes = (0, 2, 3, 4)
    return float(np.mean(1 - (2 * (p * y).sum(axes) + 1e-5) / ((p**2).sum(axes) + (y**2).sum(axes) + 1e-5)))


def judgement(method: str, objective: nn.Module, heads: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """D's logits on all crops, in evaluation mode."""
    maps = heads["distance"] if method == "sassnet" else torch.sigmoid(heads["logits"])
    return copy.deepcopy(objective.discriminator).eval()(maps, image)


# The terms


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_terms_have_the_values_that_numpy_computes(method, classes):
    network, objective = make(method, classes=classes)
    targets = batch(classes)
    heads = network(targets["image"])
    loss = objective(heads, targets, 0)

    p = sigmoid(float64(heads["logits"][:LABELED]))
    y = float64(targets["label"]) == np.arange(1, classes + 1).reshape(1, -1, 1, 1, 1)
    decision = float64(judgement(method, objective, heads, targets["image"]))[LABELED:]
    expected = {"adversarial": -np.log(sigmoid(decision)).mean()}
    if method == "sassnet":
        expected["supervised_segmentation"] = dice(p, y)
        reference = float64(objective.segmentation_to_distance(torch.tensor(y).float()))
        expected["supervised_distance"] = ((float64(heads["distance"][:LABELED]) - reference) ** 2).mean()
    else:
        cross_entropy = -np.where(y, np.log(p), np.log(1 - p)).mean()
        expected["supervised_segmentation"] = 0.5 * (dice(p, y) + cross_entropy)
    assert {name: value.item() for name, value in loss.terms.items()} == pytest.approx(expected, rel=1e-5)
    assert loss.total.item() == pytest.approx(sum(expected.values()), rel=1e-5)


def test_dan_judges_the_foreground_of_a_softmax_head():
    _, objective = make("dan")
    logits = torch.randn(2, 2, 4, 4, 4)
    torch.testing.assert_close(objective.judged_maps({"logits": logits}), torch.softmax(logits, 1)[:, 1:])


def test_reference_distance_may_come_with_the_data():
    network, objective = make("sassnet")
    targets = batch()
    heads = network(targets["image"])
    targets["distance"] = torch.full_like(targets["label"], 0.25)
    expected = ((float64(heads["distance"][:LABELED]) - 0.25) ** 2).mean()
    assert objective(heads, targets, 0).terms["supervised_distance"].item() == pytest.approx(expected, rel=1e-5)


# Who receives gradient


@pytest.mark.parametrize("method", METHODS)
def test_network_learns_from_the_adversarial_term_through_unlabeled_crops_and_the_judged_head_alone(method):
    network, objective = make(method)
    targets = batch()
    heads = network(targets["image"])
    term = objective(heads, targets, 0).terms["adversarial"]
    grads = dict(zip(heads, torch.autograd.grad(term, list(heads.values()), retain_graph=True, allow_unused=True)))
    judged = "distance" if method == "sassnet" else "logits"
    assert [name for name, grad in grads.items() if grad is not None] == [judged]
    assert not grads[judged][:LABELED].any() and grads[judged][LABELED:].any()
    term.backward()
    assert network.encoder.levels[0][0][0].weight.grad.any()
    assert all(parameter.grad is None for parameter in objective.discriminator.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_the_network_along_the_adversarial_term_makes_the_unlabeled_crop_look_more_labeled(method):
    network, objective = make(method)
    targets = batch()
    heads = network.forward_heads(targets["image"])
    head = heads["distance" if method == "sassnet" else "logits"]
    before = objective(heads, targets, 0).terms["adversarial"]
    (gradient,) = torch.autograd.grad(before, head)
    with torch.no_grad():
        head -= 10 * gradient / gradient.norm()
    assert objective(heads, targets, 0).terms["adversarial"] < before


@pytest.mark.parametrize("method", METHODS)
def test_adversarys_step_leaves_the_network_as_it_was(method):
    network, objective = make(method)
    targets = batch()
    objective(network(targets["image"]), targets, 0).total.backward()
    before = copy.deepcopy(network.state_dict())
    grads = [parameter.grad.clone() for parameter in network.parameters()]
    judge = copy.deepcopy(objective.discriminator.state_dict())
    objective.after_step(0)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(torch.equal(grad, parameter.grad) for grad, parameter in zip(grads, network.parameters()))
    assert not any(torch.equal(judge[name], value) for name, value in objective.discriminator.state_dict().items())


# The adversary's own training


@pytest.mark.parametrize("method", METHODS)
def test_adversarys_step_is_one_step_of_adam_on_all_crops_of_the_network_in_evaluation_mode(method):
    network, objective = make(method, dropout=0)
    targets = batch()
    judge = copy.deepcopy(objective.discriminator).requires_grad_(True)
    objective(network(targets["image"]), targets, 0).total.backward()
    objective.after_step(0)

    with torch.no_grad():
        heads = copy.deepcopy(network).eval().forward_heads(targets["image"])
    logits = judge(heads["distance"] if method == "sassnet" else torch.sigmoid(heads["logits"]), targets["image"])
    loss = -(torch.sigmoid(logits[:LABELED]).log().sum() + torch.sigmoid(-logits[LABELED:]).log().sum())
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    (loss / logits.numel()).backward()
    optimizer.step()
    for ours, expected in zip(objective.discriminator.parameters(), judge.parameters()):
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_adversary_learns_to_tell_unlabeled_crops_from_labeled_ones(method):
    _, objective = make(method, dropout=0, rate=1e-2)
    network = Echo()
    objective._network = (network,)
    targets = batch()
    for iteration in range(12):
        objective(network(targets["image"]), targets, iteration)
        objective.after_step(iteration)
    decision = judgement(method, objective, network(targets["image"]), targets["image"]).flatten(1).mean(1)
    assert (decision[:LABELED] > 1).all() and (decision[LABELED:] < -1).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_unlabeled_crops_neither_asks_nor_trains_the_adversary(method):
    network, objective = make(method)
    targets = batch()
    targets["image"] = targets["image"][:LABELED]
    before = copy.deepcopy(objective.discriminator.state_dict())
    loss = objective(network(targets["image"]), targets, 0)
    objective.after_step(0)
    assert "adversarial" not in loss.terms and loss.total.isfinite()
    assert all(torch.equal(before[name], value) for name, value in objective.discriminator.state_dict().items())


def test_adversarial_term_of_weight_zero_neither_asks_nor_trains_the_adversary():
    network, objective = make("sassnet", adversarial=0)
    targets = batch()
    before = copy.deepcopy(objective.discriminator.state_dict())
    loss = objective(network(targets["image"]), targets, 0)
    objective.after_step(0)
    assert sorted(loss.terms) == ["supervised_distance", "supervised_segmentation"]
    assert all(torch.equal(before[name], value) for name, value in objective.discriminator.state_dict().items())


# The state


@pytest.mark.parametrize("method", METHODS)
def test_state_of_the_adversary_survives_a_file_and_goes_on_as_if_nothing_had_happened(method, tmp_path):
    def step(network, objective):
        torch.manual_seed(0)  # of the network's dropout
        objective(network(targets["image"]), targets, 0)
        objective.after_step(0)

    targets = batch()
    network, objective = make(method, dropout=0)
    step(network, objective)
    torch.save(objective.state_dict(), tmp_path / "objective.pt")
    state = torch.load(tmp_path / "objective.pt", weights_only=True)
    assert not [name for name in state if not name.startswith(("discriminator.", "_extra_state"))]

    _, restored = make(method, dropout=0)
    for parameter in restored.discriminator.parameters():
        nn.init.zeros_(parameter)
    restored.load_state_dict(state)
    network_of_restored = copy.deepcopy(network)
    restored._network = (network_of_restored,)
    # Adam's moments count in the second step: without them its size would be another one.
    step(network, objective)
    step(network_of_restored, restored)
    for ours, expected in zip(restored.discriminator.parameters(), objective.discriminator.parameters()):
        assert torch.equal(ours, expected)
    assert restored.discriminator_optimizer.state_dict()["state"][0]["step"] == 2


# Through the bundle


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("two") / "data", num_classes=2)


@pytest.mark.parametrize("method", METHODS)
def test_overlay_trains_network_and_adversary_with_two_classes(method, two_classes, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    parser = ConfigParser()
    parser.read_config(["configs/train.json", f"configs/methods/{method}.json"])
    parser.update(small(two_classes, tmp_path, num_classes=2, max_iterations=2, val_interval=100))
    trainer = parser.get_parsed_content("train#trainer")
    judge = copy.deepcopy(trainer.objective.discriminator.state_dict())
    trainer.run()
    after = trainer.objective.discriminator.state_dict()
    assert not any(torch.equal(judge[name], after[name]) for name in judge)
    with (tmp_path / "training_log.csv").open() as file:
        log = list(csv.DictReader(file))
    assert all(np.isfinite(float(row["adversarial"])) for row in log)
    # The ramp at the first of two iterations.
    peak = {"sassnet": 0.01, "dan": 0.1}[method]
    assert float(log[0]["adversarial_weight"]) == pytest.approx(peak * np.exp(-5))
    # The judge's width follows the network's: 64 filters at the papers' 16.
    assert trainer.objective.discriminator.map_convolution.out_channels == 4 * parser["base_filters"]
