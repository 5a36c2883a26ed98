"""Tests of scripts/methods/mc_net.py: sharpening and terms by the paper's formula, gradient through both sides."""

import numpy as np
import pytest
import torch

from scripts.data import LabelCoding
from scripts.methods import MCNetObjective
from scripts.methods.losses import dice_loss

SHAPE = (4, 3, 2)


def make(num_classes=2, *, decoders=("phi", "psi"), scale=0.5):
    """Return logits of each decoder (3, C, ...) and label values (2, 1, ...)."""
    rng = np.random.default_rng(0)
    heads = {
        f"logits_{name}": torch.tensor(
            scale * rng.normal(size=(3, num_classes, *SHAPE)), dtype=torch.float32
        ).requires_grad_()
        for name in decoders
    }
    return heads, torch.tensor(rng.integers(0, num_classes + 1, (2, 1, *SHAPE)), dtype=torch.float32)


def probabilities(heads):
    return [1 / (1 + np.exp(-head.detach().double().numpy())) for head in heads.values()]


def sharpen(p, exponent=10):
    return p**exponent / (p**exponent + (1 - p) ** exponent)


def test_sharpened_prediction_of_one_voxel_is_the_hand_computed_target():
    first, second = torch.tensor([0.6, 0.5]).logit().reshape(2, 1, 1, 1, 1, 1)
    heads = {"logits_a": first, "logits_b": second}
    value = MCNetObjective(LabelCoding(1), {"supervised_dice": 0})(
        heads, {"label": torch.zeros(1, 1, 1, 1, 1)}, 0
    ).total
    # sharpen(0.6) = 1.5^10 / (1.5^10 + 1) = 0.98295, sharpen(0.5) = 0.5
    assert value.item() == pytest.approx((0.6 - 0.5) ** 2 + (0.5 - 0.98295) ** 2, abs=1e-5)


@pytest.mark.parametrize("num_classes", [1, 2])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_terms_equal_the_reference(num_classes, temperature):
    heads, label = make(num_classes)
    coding = LabelCoding(num_classes)
    weights = {"supervised_dice": 0.5}
    loss = MCNetObjective(coding, weights, temperature=temperature)(heads, {"label": label}, 0)
    p, q = probabilities(heads)
    consistency = ((p - sharpen(q, 1 / temperature)) ** 2).mean() + ((q - sharpen(p, 1 / temperature)) ** 2).mean()
    assert loss.terms["mutual_consistency"].item() == pytest.approx(consistency, rel=1e-5)
    dice = sum(dice_loss(torch.sigmoid(head[:2]), coding.encode(label)).item() for head in heads.values())
    assert loss.terms["supervised_dice"].item() == pytest.approx(dice)
    assert loss.total.item() == pytest.approx(0.5 * dice + consistency, rel=1e-5)


def test_three_decoders_make_six_pairs():
    heads, label = make(decoders="abc")
    value = MCNetObjective(LabelCoding(2))(heads, {"label": label}, 0).terms["mutual_consistency"]
    p = probabilities(heads)
    expected = sum(((p[i] - sharpen(p[j])) ** 2).mean() for i in range(3) for j in range(3) if i != j)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_overlapping_regions_are_compared_class_by_class():
    heads, label = make()
    loss = MCNetObjective(LabelCoding(2, regions=[[1, 2], [2]]))(heads, {"label": label}, 0)
    p, q = probabilities(heads)
    expected = ((p - sharpen(q)) ** 2).mean() + ((q - sharpen(p)) ** 2).mean()
    assert loss.terms["mutual_consistency"].item() == pytest.approx(expected, rel=1e-5)


def test_gradient_goes_through_prediction_and_target_of_all_crops():
    heads, label = make()
    loss = MCNetObjective(LabelCoding(2), {"supervised_dice": 0})(heads, {"label": label}, 0)
    loss.total.backward()
    p, q = probabilities(heads)
    direct = 2 * (p - sharpen(q)) * p * (1 - p)
    behind_the_sharpening = -2 * (q - sharpen(p)) * 10 * sharpen(p) * (1 - sharpen(p))
    gradient = heads["logits_phi"].grad.double().numpy()
    np.testing.assert_allclose(gradient, (direct + behind_the_sharpening) / p.size, atol=1e-7)


def test_dice_trains_the_labeled_crops_of_both_decoders_alone():
    heads, label = make()
    MCNetObjective(LabelCoding(2), {"mutual_consistency": 0})(heads, {"label": label}, 0).total.backward()
    for head in heads.values():
        assert (head.grad.abs().amax((1, 2, 3, 4)) > 0).tolist() == [True, True, False]


def test_saturated_heads_that_disagree_cost_one_each_way_and_stay_finite():
    heads = {"logits_a": torch.full((1, 1, 1, 1, 1), 500.0), "logits_b": torch.full((1, 1, 1, 1, 1), -500.0)}
    heads = {name: head.requires_grad_() for name, head in heads.items()}
    loss = MCNetObjective(LabelCoding(1))(heads, {"label": torch.ones(1, 1, 1, 1, 1)}, 0)
    loss.total.backward()
    assert loss.terms["mutual_consistency"].item() == 2
    assert all(head.grad.isfinite().all() for head in heads.values())


@pytest.mark.parametrize("shapes", [{"logits": 2}, {"logits_a": 3, "logits_b": 3}], ids=["one-head", "softmax"])
def test_networks_without_two_sigmoid_heads_are_refused(shapes):
    heads = {name: torch.zeros(1, maps, 1, 1, 1) for name, maps in shapes.items()}
    with pytest.raises(ValueError, match=r"two segmentation heads or more with 2 sigmoid map\(s\) each.*DualTaskVNet"):
        MCNetObjective(LabelCoding(2))(heads, {"label": torch.zeros(1, 1, 1, 1, 1)}, 0)


def test_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature is 0"):
        MCNetObjective(LabelCoding(1), temperature=0)
