"""Tests of scripts/methods/dtc.py and its overlays: terms, gradients, the network's size; see test_dual_task.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dual_task import (
    LABELED,
    K,
    channels,
    dice,
    double,
    level_sets,
    line,
    make_heads,
    make_label,
    merged,
    sigmoid,
    train,
    transformers,
    values_of,
)

from scripts.data import LabelCoding
from scripts.methods import DTCObjective
from scripts.networks import VNet

DTC = "configs/methods/dtc.json"


def dtc(weights=None, *, classes=2, k=1500):
    return DTCObjective(LabelCoding(classes), *transformers(k), weights)


def only(name):
    return {term: 1.0 if term == name else 0.0 for term in DTCObjective.TERMS}


# Terms


def test_terms_of_a_line_of_voxels_have_the_hand_computed_values():
    # The object is voxels 1 to 4: outside distance 1, inside 1 2 2 1, so the level set is 1 0 -1 -1 0 1.
    heads = {"logits": line(0, 0, 0, 0, 0, 0), "distance": line(1, -1, -1, 0.5, -1, 1)}
    loss = dtc(classes=1)(heads, {"label": line(0, 1, 1, 1, 1, 0)}, 0)
    assert values_of(loss) == pytest.approx(
        {
            "supervised_segmentation": 1 - 2 * 2 / (6 / 4 + 4),
            "supervised_distance": (0 + 1 + 0 + 1.5**2 + 1 + 0) / 6,
            # The map seen as a mask is 0 1 1 0 1 0, and half a probability is off by a half everywhere.
            "consistency": 1 / 4,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("k", [K, 1500])
def test_terms_of_two_classes_equal_the_reference_in_double_precision(seed, k):
    heads, label = make_heads(seed), make_label()
    loss = dtc(k=k)(heads, {"label": label}, 0)
    (p, z), y = double(heads), channels(label)
    expected = {
        "supervised_segmentation": dice(p[:LABELED], y),
        "supervised_distance": ((z[:LABELED] - level_sets(y)) ** 2).mean(),
        "consistency": ((1 / (1 + np.exp(np.clip(k * z, -700, 700))) - p) ** 2).mean(),
    }
    assert values_of(loss) == pytest.approx(expected, rel=2e-5)
    assert loss.total.item() == pytest.approx(sum(expected.values()), rel=2e-5)


def test_a_softmax_head_counts_with_its_foreground_probabilities():
    heads, label = make_heads(), make_label()
    logits = torch.cat([torch.zeros(4, 1, 8, 7, 6), heads["logits"].detach()], dim=1)
    loss = dtc(k=K)({**heads, "logits": logits}, {"label": label}, 0)
    exponential = np.exp(logits.double().numpy())
    p = (exponential / exponential.sum(1, keepdims=True))[:, 1:]
    assert values_of(loss)["supervised_segmentation"] == pytest.approx(dice(p[:LABELED], channels(label)), rel=2e-5)
    q = sigmoid(-K * double(heads)[1])
    assert values_of(loss)["consistency"] == pytest.approx(((q - p) ** 2).mean(), rel=2e-5)


@pytest.mark.parametrize("value, constant", [(0, 1.0), (1, -1.0)], ids=["empty", "full"])
def test_level_set_of_a_label_without_a_boundary_is_constant_and_every_gradient_finite(value, constant):
    heads = {name: head[:, :1].detach().requires_grad_() for name, head in make_heads().items()}
    loss = dtc(classes=1)(heads, {"label": torch.full((LABELED, 1, 8, 7, 6), float(value))}, 0)
    expected = ((heads["distance"][:LABELED] - constant) ** 2).mean().item()
    assert values_of(loss)["supervised_distance"] == pytest.approx(expected, rel=1e-5)
    loss.total.backward()
    assert all(head.grad.isfinite().all() for head in heads.values())


# Gradients


def test_consistency_pulls_the_segmentation_and_through_the_sigmoid_the_distance():
    heads = make_heads()
    dtc(only("consistency"), k=K)(heads, {"label": make_label()}, 0).total.backward()
    p, z = double(heads)
    q = sigmoid(-K * z)
    for name, expected in (
        ("logits", 2 * (p - q) / p.size * p * (1 - p)),
        ("distance", 2 * (q - p) / p.size * -K * q * (1 - q)),
    ):
        np.testing.assert_allclose(heads[name].grad, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


# Network and overlays


def test_network_has_the_papers_parameters_and_segments_by_its_segmentation_head():
    assert sum(p.numel() for p in VNet(tasks=["segmentation", "distance"]).parameters()) == 9_448_866
    network = VNet(base_filters=2, tasks=["segmentation", "distance"]).eval()
    x = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(network(x), torch.sigmoid(network.forward_heads(x)["logits"]))


@pytest.mark.parametrize(
    "iteration, consistency", [(0, math.exp(-5)), (3000, math.exp(-1.25)), (6000, 1.0), (9000, 1.0)]
)
def test_weights_are_those_of_the_authors_program_with_a_ramp_over_the_whole_run(iteration, consistency):
    objective = merged(DTC, max_iterations=6000).get_parsed_content("objective")
    assert (objective.weights["supervised_segmentation"], objective.weights["supervised_distance"]) == (1, 0.3)
    assert objective.weights["consistency"](iteration) == pytest.approx(consistency)


def test_reference_map_of_the_overlay_is_exact_at_full_resolution_with_a_zero_inner_boundary():
    label = make_label()
    made = (
        merged(DTC, num_classes=2)
        .get_parsed_content("objective")
        .segmentation_to_distance(torch.tensor(channels(label), dtype=torch.float32))
    )
    np.testing.assert_allclose(made.numpy(), level_sets(channels(label)), atol=1e-5)


def test_level_sets_of_whole_volumes_as_in_the_paper_train_through_the_bundle(workflow, tiny, tmp_path):
    log = train(workflow, tiny, tmp_path, DTC, "configs/ablations/pre_generated_maps.json")
    assert all(math.isfinite(float(row["supervised_distance"])) for row in log)


def test_distance_head_alone_trains_and_segments_where_its_distance_is_negative(workflow, tiny, tmp_path):
    train(workflow, tiny, tmp_path, DTC, "configs/ablations/dtc_lsf.json", base_filters=2)
    network = VNet(base_filters=2, tasks=["distance"], normalization="group")
    network.load_state_dict(torch.load(tmp_path / "models" / "model.pt", weights_only=True))
    x = torch.randn(1, 1, 16, 16, 16)
    distance = network.eval().forward_heads(x)["distance"]
    assert torch.equal(network(x) > 0.5, distance < 0)
