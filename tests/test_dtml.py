"""Tests of scripts/methods/dtml.py, scripts/networks/twin_vnet.py and their overlays; see test_dual_task.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dual_task import (
    LABELED,
    K,
    channels,
    cross_entropy,
    dice,
    double,
    level_sets,
    line,
    make_heads,
    make_label,
    merged,
    sigmoid,
    transformers,
    values_of,
)

from scripts.data import LabelCoding
from scripts.methods import DTMLObjective, SupervisedObjective
from scripts.networks import PairedVNet, VNet

DTML = "configs/methods/dtml.json"
TERMS = set(DTMLObjective.TERMS)


def dtml(weights=None, *, classes=2, k=1500):
    return DTMLObjective(LabelCoding(classes), *transformers(k), weights)


def only(name):
    return {term: 1.0 if term == name else 0.0 for term in TERMS}


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.randn(2, 1, 32, 16, 16)


# Terms


def test_terms_of_a_line_of_voxels_have_the_hand_computed_values():
    # The object is voxels 1 to 4, its signed map 1 0 -1 -1 0 1; the given map seen as a mask is 0 1 1 0 1 0.
    heads = {"logits": line(0, 0, 0, 0, 0, 0), "distance": line(1, -1, -1, 0.5, -1, 1)}
    loss = dtml(classes=1)(heads, {"label": line(0, 1, 1, 1, 1, 0)}, 0)
    assert values_of(loss) == pytest.approx(
        {
            "supervised_segmentation": 0.5 * (1 - 2 * 2 / (6 / 4 + 4) + math.log(2)),
            "supervised_mask": 1 - 2 * 3 / (3 + 4),
            "supervised_distance": (0 + 1 + 0 + 1.5**2 + 1 + 0) / 6,
            "consistency": 1 / 4,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_terms_of_two_classes_equal_the_reference_in_double_precision(seed):
    heads, label = make_heads(seed), make_label()
    loss = dtml(k=K)(heads, {"label": label}, 0)
    (p, z), y = double(heads), channels(label)
    q = sigmoid(-K * z)
    expected = {
        "supervised_segmentation": 0.5 * (dice(p[:LABELED], y) + cross_entropy(p[:LABELED], y)),
        "supervised_mask": dice(q[:LABELED], y),
        "supervised_distance": ((z[:LABELED] - level_sets(y)) ** 2).mean(),
        "consistency": ((q - p) ** 2).mean(),
    }
    assert values_of(loss) == pytest.approx(expected, rel=2e-5)
    assert loss.total.item() == pytest.approx(sum(expected.values()), rel=2e-5)


# Gradients


@pytest.mark.parametrize(
    "name, networks",
    [
        ("supervised_segmentation", {"segmentation_network"}),
        ("supervised_mask", {"distance_network"}),
        ("supervised_distance", {"distance_network"}),
        ("consistency", {"segmentation_network", "distance_network"}),
    ],
)
def test_supervision_trains_one_network_and_consistency_both(name, networks, image):
    network = PairedVNet(base_filters=2, dropout=0.0)
    label = torch.zeros(1, 1, 32, 16, 16)
    label[..., 4:12, 4:12] = 1
    dtml(only(name), classes=1, k=K)(network(image), {"label": label}, 0).total.backward()
    assert {
        n for n, child in network.named_children() if any(p.grad is not None for p in child.parameters())
    } == networks


def test_default_consistency_is_what_two_back_propagations_of_it_leave_in_each_network(image):
    network = PairedVNet(base_filters=2, dropout=0.0)
    targets = {"label": torch.zeros(1, 1, 32, 16, 16)}
    weight = merged(DTML, max_iterations=100).get_parsed_content("objective").weights["consistency"]
    dtml({**only("consistency"), "consistency": weight}, classes=1, k=K)(network(image), targets, 50).total.backward()
    once = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    heads = network(image)
    for _ in range(2):
        difference = (torch.sigmoid(-K * heads["distance"]) - torch.sigmoid(heads["logits"])) ** 2
        (math.exp(-5 / 4) * difference.mean()).backward(retain_graph=True)
    assert max(p.grad.abs().max() for p in network.parameters()) > 0
    for p, gradient in zip(network.parameters(), once):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-6)


# Network


@pytest.mark.parametrize("arguments, expected", [({}, 18_897_698), ({"num_classes": 2}, 2 * 9_448_866)])
def test_parameters_are_those_of_two_v_nets(arguments, expected):
    assert sum(p.numel() for p in PairedVNet(**arguments).parameters()) == expected


def test_heads_are_those_of_the_two_networks_and_evaluation_is_the_segmentation_network(image):
    network = PairedVNet(num_classes=2, base_filters=2, dropout=0.0).eval()
    heads = network.forward_heads(image)
    assert {name: tuple(head.shape) for name, head in heads.items()} == dict.fromkeys(
        ("logits", "distance"), (2, 2, 32, 16, 16)
    )
    assert torch.equal(heads["logits"], network.segmentation_network.forward_heads(image)["logits"])
    assert torch.equal(heads["distance"], network.distance_network.forward_heads(image)["distance"])
    torch.testing.assert_close(network(image), torch.sigmoid(heads["logits"]))
    trained, expected = network.train()(image), network.forward_heads(image)
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


def test_evaluation_does_not_run_the_distance_network(image):
    network = PairedVNet(base_filters=2).eval()
    network.distance_network.register_forward_pre_hook(lambda *_: pytest.fail("M_d was run"))
    network.distance_network.encoder.register_forward_pre_hook(lambda *_: pytest.fail("M_d was run"))
    assert network(image).shape == (2, 1, 32, 16, 16)


def test_the_two_networks_begin_with_different_weights():
    network = PairedVNet(base_filters=2)
    pairs = zip(network.segmentation_network.encoder.parameters(), network.distance_network.encoder.parameters())
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_network_scripts_and_traces(image):
    image = image[:, :, :16]
    network = PairedVNet(num_classes=2, base_filters=2, dropout=0.0).eval()
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(image), network(image))
    torch.testing.assert_close(torch.jit.trace(network, image, check_trace=False)(image), network(image))
    heads = network.forward_heads(image)
    assert all(torch.allclose(head, heads[name], atol=1e-6) for name, head in scripted.forward_heads(image).items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(1, 2, 16, 16, 16), (1, 1, 24, 16, 16)])
def test_input_that_does_not_fit_is_refused(training, shape):
    with pytest.raises(ValueError, match="set in_channels|multiple of 16"):
        PairedVNet(base_filters=2).train(training)(torch.zeros(shape))


# Overlays


@pytest.mark.parametrize("iteration, consistency", [(0, 2 * math.exp(-5)), (3000, 2 * math.exp(-1.25)), (6000, 2)])
def test_weights_are_those_of_the_authors_program_with_a_ramp_over_the_whole_run(iteration, consistency):
    weights = dict(merged(DTML, max_iterations=6000).get_parsed_content("objective").weights)
    assert weights.pop("consistency")(iteration) == pytest.approx(consistency)
    assert weights == {"supervised_segmentation": 1, "supervised_mask": 1, "supervised_distance": 0}


@pytest.mark.parametrize(
    "override, iteration, consistency",
    [
        ({"objective#weights#consistency#peak": 1}, 0, math.exp(-5)),
        ({"objective#weights#consistency#peak": 1}, 6000, 1),
        ({"objective#weights#consistency": 1}, None, 1),
    ],
)
def test_factor_and_ramp_of_the_consistency_are_one_override_each(override, iteration, consistency):
    weight = merged(DTML, max_iterations=6000, **override).get_parsed_content("objective").weights["consistency"]
    assert (weight if iteration is None else weight(iteration)) == pytest.approx(consistency)


def test_segmentation_network_alone_is_the_supervised_baseline(image):
    ablation, baseline = (
        merged(*files, base_filters=2)
        for files in ([DTML, "configs/ablations/dtml_m_s.json"], ["configs/methods/supervised.json"])
    )
    networks = [parser.get_parsed_content("network_def") for parser in (ablation, baseline)]
    assert all(isinstance(network, VNet) for network in networks)
    assert [(n, p.shape) for n, p in networks[0].named_parameters()] == [
        (n, p.shape) for n, p in networks[1].named_parameters()
    ]
    objectives = [parser.get_parsed_content("objective") for parser in (ablation, baseline)]
    assert isinstance(objectives[1], SupervisedObjective)
    heads, label = networks[0].train()(image), torch.zeros(2, 1, 32, 16, 16)
    label[..., 4:12, 4:12] = 1
    assert objectives[0](heads, {"label": label}, 0).total == objectives[1](heads, {"label": label}, 0).total


# Training


def test_distance_network_learns_a_mask_from_the_loss_behind_the_steep_sigmoid():
    torch.manual_seed(0)
    network = VNet(base_filters=4, tasks=["distance"], dropout=0.0).train()
    label = torch.zeros(2, 1, 16, 16, 16)
    label[0, :, 4:12, 4:12, 4:12] = 1
    label[1, :, 2:9, 6:14, 3:12] = 1
    image = label + 0.1 * torch.randn(2, 1, 16, 16, 16)
    # So that the map has both signs to begin with: with one sign there is no gradient, see the next test.
    network.distance_head.bias.data -= network(image)["distance"].detach().atanh().median()
    objective = dtml(only("supervised_mask"), classes=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for iteration in range(20):
        optimizer.zero_grad()
        loss = objective(network(image), {"label": label}, iteration).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_a_map_of_one_sign_everywhere_gets_no_gradient_from_the_mask_but_does_from_the_distance():
    label = make_label()
    for name, stuck in (("supervised_mask", True), ("consistency", True), ("supervised_distance", False)):
        heads = make_heads()
        heads["distance"] = (heads["distance"].detach().abs() + 0.1).requires_grad_()
        dtml(only(name))(heads, {"label": label}, 0).total.backward()
        assert (heads["distance"].grad.abs().max() < 1e-9) == stuck
