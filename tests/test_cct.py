"""Tests of CCT: the perturbations, the network with auxiliary decoders, and the terms of the objective."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from scripts.data import LabelCoding
from scripts.methods import CCTObjective
from scripts.methods.losses import segmentation_loss
from scripts.networks import CrossConsistencyVNet, VNet
from scripts.networks.perturbations import FeatureDrop, FeatureNoise

AUXILIARY = ("noise", "dropout", "feature_drop")
HEADS = ("logits", *(f"logits_{name}" for name in AUXILIARY))
SHAPE = (4, 3, 2)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def image(size=(32, 16, 16)):
    return torch.randn(2, 1, *size)


# Perturbations


def test_noise_is_relative_uniform_and_drawn_for_every_value():
    x = torch.full((2, 3, 32, 32, 16), 2.0)
    change = FeatureNoise(0.3)(x) / x - 1
    assert -0.3 <= change.min() < -0.299 and 0.299 < change.max() < 0.3001
    assert change.var().item() == pytest.approx(0.6**2 / 12, rel=0.03)
    assert not torch.equal(change[0], change[1]) and not torch.equal(change[:, 0], change[:, 1])


def test_feature_drop_takes_the_most_active_voxels_of_every_crop_in_all_channels():
    # Mean over the two channels, relative to the crop's largest: 1, 0.95, 0.6, 0.1, and the same in a weaker crop.
    x = torch.tensor([[1.0, 1.9, 0.2, 0.0], [1.0, 0.0, 1.0, 0.2]]).reshape(1, 2, 4, 1, 1)
    x = torch.cat([x, 0.01 * x])
    dropped = FeatureDrop(0.7, 0.9)(x)
    assert torch.equal(dropped[:, :, :2], torch.zeros(2, 2, 2, 1, 1))
    assert torch.equal(dropped[:, :, 2:], x[:, :, 2:])


def test_fraction_of_feature_drop_is_drawn_between_its_limits_for_every_crop():
    x = torch.linspace(0, 1, 1001).reshape(1, 1, -1, 1, 1).expand(200, -1, -1, -1, -1)
    kept = FeatureDrop(0.7, 0.9)(x).amax((1, 2, 3, 4))
    assert 0.69 < kept.min() < 0.72 and 0.88 < kept.max() < 0.9 and kept.mean().item() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("perturbation", [FeatureNoise(), FeatureDrop()], ids=["noise", "drop"])
def test_perturbations_do_nothing_in_evaluation_mode(perturbation):
    x = torch.rand(2, 3, 4, 4, 4)
    assert torch.equal(perturbation.eval()(x), x)
    assert not torch.equal(perturbation.train()(x), x)


# Network


def test_parameters_without_normalisation_are_as_many_as_the_papers_say():
    network = CrossConsistencyVNet(activation="softmax")
    count = sum(p.numel() for p in network.parameters())
    norms = sum(p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters())
    # Encoder and four transposed-convolution decoders with two 1x1x1 maps each; 15.65 M in DTC's Table 1.
    assert count == 7_376_896 + 4 * 2_071_970 == 15_664_776
    assert count - norms == 15_653_800


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation, maps", [("sigmoid", 2), ("softmax", 3)])
def test_heads_are_those_of_the_four_decoders_in_either_mode(activation, maps, training):
    network = CrossConsistencyVNet(1, 2, 2, activation=activation).train(training)
    heads = network.forward_heads(image())
    assert {name: tuple(head.shape) for name, head in heads.items()} == dict.fromkeys(HEADS, (2, maps, 32, 16, 16))
    assert network.eval()(image()).shape == (2, 2, 32, 16, 16)


def test_evaluation_is_the_v_net_of_encoder_and_main_decoder():
    network = CrossConsistencyVNet(1, 2, 2, activation="softmax").eval()
    plain = VNet(1, 2, 2, activation="softmax").eval()
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if name in plain.state_dict()})
    x = image()
    assert torch.equal(network(x), plain(x))


def test_auxiliary_decoders_see_perturbed_features_in_training_mode_alone():
    network = CrossConsistencyVNet(base_filters=2, dropout=0)
    for name in AUXILIARY:
        getattr(network, f"decoder_{name}").load_state_dict(network.decoder.state_dict())
        getattr(network, f"segmentation_head_{name}").load_state_dict(network.segmentation_head.state_dict())
    x = image()
    heads = network.eval().forward_heads(x)
    assert all(torch.equal(heads[name], heads["logits"]) for name in HEADS)
    first, second = network.train()(x), network(x)
    assert torch.equal(first["logits"], second["logits"])
    for name in HEADS[1:]:
        assert not torch.equal(first[name], second[name])
        assert not torch.allclose(first[name], first["logits"], atol=1e-3)


@pytest.mark.parametrize("name, module", zip(AUXILIARY, ("noise", "channel_dropout", "feature_drop")))
def test_every_auxiliary_decoder_has_its_own_perturbation_on_every_level(name, module):
    network = CrossConsistencyVNet(base_filters=2, dropout=0).train()
    expected = {level.shape[1:] for level in network.encoder(image())}
    x, without = image(), copy.deepcopy(network)
    setattr(without, module, nn.Identity())
    seen = []
    getattr(network, module).register_forward_hook(lambda _, given, result: seen.append(result.shape[1:]))
    without.train()
    stable = [without(x)[f"logits_{name}"] for _ in range(2)]
    assert torch.equal(*stable) and not torch.equal(network(x)[f"logits_{name}"], stable[0])
    assert set(seen) == expected and len(seen) == 5


def test_every_head_trains_the_encoder_and_no_other_decoder():
    network = CrossConsistencyVNet(base_filters=2, dropout=0).train()
    heads = network(image())
    decoders = {name: getattr(network, name.replace("logits", "decoder")) for name in HEADS}
    for name in HEADS:
        network.zero_grad()
        heads[name].sum().backward(retain_graph=True)
        trained = [n for n, decoder in decoders.items() if next(decoder.parameters()).grad is not None]
        assert trained == [name]
        assert all(parameter.grad is not None for parameter in network.encoder.parameters())


def test_network_scripts_and_traces():
    network = CrossConsistencyVNet(1, 2, 2, activation="softmax", dropout=0.0).eval()
    scripted, x = torch.jit.script(network), image()
    torch.testing.assert_close(scripted(x), network(x))
    torch.testing.assert_close(torch.jit.trace(network, x)(x), network(x))
    assert set(scripted.train()(x)) == set(HEADS)


@pytest.mark.parametrize("shape", [(1, 2, 16, 16, 16), (1, 1, 24, 16, 16)])
@pytest.mark.parametrize("training", [True, False])
def test_input_that_does_not_fit_is_refused(shape, training):
    with pytest.raises(ValueError, match="set in_channels|choose such a patch_size"):
        CrossConsistencyVNet(base_filters=1).train(training)(torch.zeros(shape))


# Objective


def make(num_classes=2, *, maps=3):
    """Return the logits of four decoders (5, maps, ...) and label values (2, 1, ...)."""
    rng = np.random.default_rng(0)
    heads = {n: torch.tensor(rng.normal(size=(5, maps, *SHAPE)), dtype=torch.float32).requires_grad_() for n in HEADS}
    return heads, torch.tensor(rng.integers(0, num_classes + 1, (2, 1, *SHAPE)), dtype=torch.float32)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_terms_equal_the_reference(num_classes):
    heads, label = make(num_classes, maps=num_classes + 1)
    coding = LabelCoding(num_classes)
    loss = CCTObjective(coding, {"consistency": 0.1})(heads, {"label": label}, 0)
    main, *auxiliary = (softmax(head.detach().double().numpy()[2:], axis=1) for head in heads.values())
    consistency = np.mean([(p - main) ** 2 for p in auxiliary])
    assert loss.terms["consistency"].item() == pytest.approx(consistency, rel=1e-5)
    supervised = np.mean([segmentation_loss(head[:2], coding.encode(label)).item() for head in heads.values()])
    assert loss.terms["supervised_segmentation"].item() == pytest.approx(supervised)
    assert loss.total.item() == pytest.approx(supervised + 0.1 * consistency, rel=1e-5)


def test_overlapping_regions_are_compared_class_by_class():
    heads, label = make(maps=2)
    loss = CCTObjective(LabelCoding(2, regions=[[1, 2], [2]]))(heads, {"label": label}, 0)
    main, *auxiliary = (1 / (1 + np.exp(-head.detach().double().numpy()[2:])) for head in heads.values())
    expected = np.mean([(p - main) ** 2 for p in auxiliary])
    assert loss.terms["consistency"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("detach_main", [True, False])
def test_consistency_trains_the_auxiliary_decoders_on_unlabeled_crops_and_the_main_one_if_told(detach_main):
    heads, label = make()
    terms = CCTObjective(LabelCoding(2), detach_main=detach_main)(heads, {"label": label}, 0).terms
    terms["consistency"].backward()
    for name in HEADS[1:]:
        assert (heads[name].grad.abs().amax((1, 2, 3, 4)) > 0).tolist() == [False] * 2 + [True] * 3
    assert (heads["logits"].grad is None) is detach_main
    terms["supervised_segmentation"].backward()
    assert heads["logits"].grad[:2].abs().max() > 0


def test_without_unlabeled_crops_labels_alone_are_left():
    heads, label = make()
    loss = CCTObjective(LabelCoding(2))({name: head[:2] for name, head in heads.items()}, {"label": label}, 0)
    assert set(loss.terms) == {"supervised_segmentation"} and loss.total.isfinite()


@pytest.mark.parametrize("names", [["logits"], ["logits_phi", "logits_psi"]])
def test_networks_without_main_and_auxiliary_heads_are_refused(names):
    heads, label = make()
    with pytest.raises(ValueError, match="CCT needs a main segmentation head called 'logits'.*CrossConsistencyVNet"):
        CCTObjective(LabelCoding(2))(dict.fromkeys(names, heads["logits"]), {"label": label}, 0)
