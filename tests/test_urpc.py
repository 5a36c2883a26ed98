"""Tests of URPC: the pyramid network and the terms of the objective against numpy in double precision."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax

from scripts.data import LabelCoding
from scripts.methods import URPCObjective
from scripts.methods.losses import segmentation_loss
from scripts.networks import PyramidVNet, VNet

SCALES = {"logits": 3, "logits_2": 2, "logits_4": 1, "logits_8": 0}
SHAPE = (4, 3, 2)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def image(size=(32, 16, 48)):
    return torch.randn(2, 1, *size)


# Network


def test_parameters_are_those_of_the_v_net_and_three_further_heads():
    count = sum(p.numel() for p in PyramidVNet(activation="softmax").parameters())
    assert count == 9_448_866 + 2 * (32 + 1) + 2 * (64 + 1) + 2 * (128 + 1) == 9_449_320


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation, maps", [("sigmoid", 2), ("softmax", 3)])
def test_every_decoder_level_has_a_head_at_full_resolution(activation, maps, training):
    network = PyramidVNet(1, 2, 2, activation=activation, dropout=0).train(training)
    x = image()
    heads = network.forward_heads(x)
    assert list(heads) == list(SCALES)
    levels = network.decoder.every_level(network.encoder(x))
    for name, level in SCALES.items():
        assert heads[name].shape == (2, maps, 32, 16, 48)
        head = getattr(network, name.replace("logits", "segmentation_head"))
        expected = F.interpolate(head(levels[level]), size=x.shape[2:], mode="trilinear", align_corners=False)
        torch.testing.assert_close(heads[name], expected)


def test_evaluation_is_the_v_nets():
    network = PyramidVNet(1, 2, 2, activation="softmax").eval()
    plain = VNet(1, 2, 2, activation="softmax").eval()
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if name in plain.state_dict()})
    x = image()
    assert torch.equal(network(x), plain(x))


def test_dropout_is_before_every_head():
    network = PyramidVNet(base_filters=4)
    network.encoder.dropout.p = 0
    first, second = (network(x) for x in [image()] * 2)
    assert all(not torch.equal(first[name], second[name]) for name in SCALES)


def test_coarse_heads_train_the_levels_up_to_their_own():
    network = PyramidVNet(base_filters=2, dropout=0)
    heads = network(image())
    for name, level in SCALES.items():
        network.zero_grad()
        heads[name].sum().backward(retain_graph=True)
        trained = [next(module.parameters()).grad is not None for module in network.decoder.levels]
        assert trained == [i <= level for i in range(4)]
        assert all(parameter.grad is not None for parameter in network.encoder.levels[4].parameters())


def test_network_scripts_and_traces():
    network = PyramidVNet(1, 2, 2, activation="softmax", dropout=0.0).eval()
    scripted, x = torch.jit.script(network), image()
    torch.testing.assert_close(scripted(x), network(x))
    torch.testing.assert_close(torch.jit.trace(network, x)(x), network(x))
    heads, expected = scripted.train()(x), network.train()(x)
    assert all(torch.allclose(heads[name], expected[name], atol=1e-5) for name in SCALES)


@pytest.mark.parametrize("shape", [(1, 2, 16, 16, 16), (1, 1, 24, 16, 16)])
@pytest.mark.parametrize("training", [True, False])
def test_input_that_does_not_fit_is_refused(shape, training):
    with pytest.raises(ValueError, match="set in_channels|choose such a patch_size"):
        PyramidVNet(base_filters=1).train(training)(torch.zeros(shape))


# Objective


def make(num_classes=2, *, maps=3):
    """Return the logits of four scales (5, maps, ...) and label values (2, 1, ...)."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(5, maps, *SHAPE))
    heads = {
        name: torch.tensor(2 * common + (i + 1) * rng.normal(size=common.shape), dtype=torch.float32).requires_grad_()
        for i, name in enumerate(SCALES)
    }
    return heads, torch.tensor(rng.integers(0, num_classes + 1, (2, 1, *SHAPE)), dtype=torch.float32)


def reference(p):
    """Consistency and uncertainty of the probabilities p (S, U, M, ...) of S scales, in double precision."""
    mean = p.mean(0)
    consistency, uncertainty = [], []
    for scale in p:
        divergence = rel_entr(mean, scale).sum(1)
        certainty = np.exp(-divergence)
        consistency.append((((mean - scale) ** 2).mean(1) * certainty).sum() / certainty.sum())
        uncertainty.append(divergence.mean())
    return np.mean(consistency), np.mean(uncertainty)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_terms_equal_the_reference(num_classes):
    heads, label = make(num_classes, maps=num_classes + 1)
    coding = LabelCoding(num_classes)
    loss = URPCObjective(coding, {"consistency": 0.1, "uncertainty": 0.2})(heads, {"label": label}, 0)
    p = np.stack([softmax(head.detach().double().numpy()[2:], axis=1) for head in heads.values()])
    consistency, uncertainty = reference(p)
    # The rectification matters in these data: unweighted, the value is another one.
    assert abs(((p - p.mean(0)) ** 2).mean() / consistency - 1) > 0.1
    assert loss.terms["consistency"].item() == pytest.approx(consistency, rel=1e-5)
    assert loss.terms["uncertainty"].item() == pytest.approx(uncertainty, rel=1e-5)
    supervised = np.mean([segmentation_loss(head[:2], coding.encode(label)).item() for head in heads.values()])
    assert loss.terms["supervised_segmentation"].item() == pytest.approx(supervised)
    assert loss.total.item() == pytest.approx(supervised + 0.1 * consistency + 0.2 * uncertainty, rel=1e-5)


def test_one_voxel_of_two_scales_has_the_hand_computed_values():
    # p = (1/2, 1/2) and (3/4, 1/4), mean (5/8, 3/8): each is 1/8 off in both maps, whatever the certainty.
    scales = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log().reshape(2, 1, 2, 1, 1, 1)
    heads = {"logits": torch.cat([scales[0]] * 2), "logits_2": torch.cat([scales[1]] * 2)}
    terms = URPCObjective(LabelCoding(1))(heads, {"label": torch.zeros(1, 1, 1, 1, 1)}, 0).terms
    assert terms["consistency"].item() == pytest.approx(1 / 64)
    first = 5 / 8 * math.log(5 / 4) + 3 / 8 * math.log(3 / 4)
    second = 5 / 8 * math.log(5 / 6) + 3 / 8 * math.log(3 / 2)
    assert terms["uncertainty"].item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_overlapping_regions_are_compared_class_by_class():
    heads, label = make(maps=2)
    terms = URPCObjective(LabelCoding(2, regions=[[1, 2], [2]]))(heads, {"label": label}, 0).terms
    p = np.stack([1 / (1 + np.exp(-head.detach().double().numpy()[2:])) for head in heads.values()])
    # Each class is a distribution of its own: absent and present.
    p = np.stack([1 - p, p], axis=2).swapaxes(2, 3).swapaxes(1, 2)
    p = p.reshape(4, -1, *p.shape[3:])
    consistency, uncertainty = reference(p)
    assert terms["consistency"].item() == pytest.approx(consistency, rel=1e-5)
    assert terms["uncertainty"].item() == pytest.approx(uncertainty, rel=1e-5)


def test_scales_that_agree_cost_nothing():
    heads, label = make()
    terms = URPCObjective(LabelCoding(2))(dict.fromkeys(SCALES, heads["logits"]), {"label": label}, 0).terms
    assert terms["consistency"].item() == pytest.approx(0, abs=1e-10)
    assert terms["uncertainty"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("term", ["consistency", "uncertainty"])
def test_every_scale_is_trained_on_the_unlabeled_crops_alone(term):
    heads, label = make()
    others = dict.fromkeys({"supervised_segmentation", "consistency", "uncertainty"} - {term}, 0)
    URPCObjective(LabelCoding(2), others)(heads, {"label": label}, 0).total.backward()
    for head in heads.values():
        assert (head.grad.abs().amax((1, 2, 3, 4)) > 0).tolist() == [False] * 2 + [True] * 3


@pytest.mark.parametrize("term", ["consistency", "uncertainty"])
def test_gradient_goes_through_mean_and_certainty(term):
    heads, label = make()
    others = dict.fromkeys({"supervised_segmentation", "consistency", "uncertainty"} - {term}, 0)
    URPCObjective(LabelCoding(2), others)(heads, {"label": label}, 0).total.backward()
    z = np.stack([head.detach().double().numpy()[2:] for head in heads.values()])
    rng, step = np.random.default_rng(1), 1e-5
    direction = rng.normal(size=z.shape)
    ahead, behind = (reference(softmax(z + s * direction, axis=2)) for s in (step, -step))
    index = ["consistency", "uncertainty"].index(term)
    expected = (ahead[index] - behind[index]) / (2 * step)
    gradient = np.stack([head.grad.double().numpy()[2:] for head in heads.values()])
    assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-3)


def test_saturated_scales_that_disagree_stay_finite():
    logits = torch.tensor([300.0, -300.0]).reshape(1, 2, 1, 1, 1).expand(2, -1, 2, 2, 2)
    heads = {"logits": logits.clone().requires_grad_(), "logits_2": (-logits).clone().requires_grad_()}
    loss = URPCObjective(LabelCoding(1))(heads, {"label": torch.ones(1, 1, 2, 2, 2)}, 0)
    loss.total.backward()
    assert loss.total.isfinite() and all(head.grad.isfinite().all() for head in heads.values())


def test_without_unlabeled_crops_labels_alone_are_left():
    heads, label = make()
    loss = URPCObjective(LabelCoding(2))({name: head[:2] for name, head in heads.items()}, {"label": label}, 0)
    assert set(loss.terms) == {"supervised_segmentation"} and loss.total.isfinite()


@pytest.mark.parametrize("names", [["logits"], ["logits_phi", "logits_psi"]])
def test_network_without_scales_is_refused(names):
    heads, label = make()
    with pytest.raises(ValueError, match="coarser scales called 'logits_...'.*use scripts.networks.PyramidVNet"):
        URPCObjective(LabelCoding(2))({name: heads["logits"] for name in names}, {"label": label}, 0)
