"""Tests of scripts/networks: parameter counts, a functional reference of the V-Net, heads, dropout, errors, export."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scripts.data import LabelCoding
from scripts.networks import DualNetworks, DualTaskVNet, PairedVNet, PyramidVNet, VNet
from scripts.networks.blocks import Decoder, Encoder
from scripts.networks.heads import foreground_probability

SEGMENTATION_HEADS = {"logits_phi", "logits_psi"}
DUAL_HEADS = SEGMENTATION_HEADS | {"distance_phi", "distance_psi"}
NETWORKS = {
    "dual": lambda **arguments: DualTaskVNet(**{"base_filters": 2, **arguments}),
    "segmenting-dual": lambda **arguments: DualTaskVNet(**{"base_filters": 2, "tasks": ["segmentation"], **arguments}),
    "transposed": lambda **arguments: VNet(**{"base_filters": 2, **arguments}),
    "trilinear": lambda **arguments: VNet(**{"base_filters": 2, "upsampling_mode": "trilinear", **arguments}),
}
each_network = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def image(*, batch=2, channels=1, size=(32, 16, 16)):
    return torch.randn(batch, channels, *size)


def with_random_normalisation(network):
    """Return `network` with BatchNorm that does something: random statistics, scales and shifts."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.5),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.1, 0.5),
            ):
                tensor.uniform_(low, high)
    return network


# The papers: 9.45 M for the V-Net and 12.35 M for DBiSL. The variants follow by hand: 27 * 16 more weights for a second
# input channel, 16 + 1 more parameters a head for every further class.
@pytest.mark.parametrize(
    "build, expected",
    [
        (lambda: [DualTaskVNet()], 12_347_716),
        (lambda: [DualTaskVNet(tasks=["segmentation"])], 12_347_716 - 2 * 17),
        (lambda: [VNet(num_classes=2)], 9_448_866),
        (lambda: [Encoder(1)], 7_376_896),
        (lambda: [Decoder(upsampling_mode="transposed"), nn.Conv3d(16, 2, 1)], 2_071_970),
        (lambda: [Decoder(upsampling_mode="trilinear"), nn.Conv3d(16, 2, 1)], 2_898_850),
        (lambda: [VNet(num_classes=2, upsampling_mode="trilinear")], 7_376_896 + 2_898_850),
        (lambda: [DualTaskVNet(in_channels=2)], 12_347_716 + 27 * 16),
        (lambda: [DualTaskVNet(num_classes=3)], 12_347_716 + 4 * 2 * 17),
    ],
    ids=[
        "dual-task",
        "segmenting-dual",
        "v-net",
        "encoder",
        "transposed-decoder",
        "trilinear-decoder",
        "trilinear-v-net",
        "two-channels",
        "three-classes",
    ],
)
def test_parameters_are_as_many_as_the_papers_say(build, expected):
    assert sum(p.numel() for module in build() for p in module.parameters()) == expected


def reference_units(x, modules):
    """Every (transposed) convolution among `modules` followed by normalisation and ReLU, in evaluation mode."""
    modules = [m for m in modules if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d))]
    for convolution, norm in zip(modules[::2], modules[1::2]):
        if isinstance(convolution, nn.ConvTranspose3d):
            x = F.conv_transpose3d(x, convolution.weight, convolution.bias, stride=2)
        else:
            down = convolution.kernel_size == (2, 2, 2)
            x = F.conv3d(x, convolution.weight, convolution.bias, stride=2 if down else 1, padding=0 if down else 1)
        shape = (1, -1, 1, 1, 1)
        x = (x - norm.running_mean.reshape(shape)) / torch.sqrt(norm.running_var.reshape(shape) + 1e-5)
        x = torch.clamp(x * norm.weight.reshape(shape) + norm.bias.reshape(shape), min=0)
    return x


def reference_features(encoder, decoder, x):
    """The V-Net of methods.md, section 0, in evaluation mode: skip connections are added, nothing is residual."""
    skips = []
    for level in encoder.levels:
        x = reference_units(x, level.modules())
        skips.append(x)
    for up, level, skip in zip(decoder.upsamplings, decoder.levels, skips[-2::-1]):
        if not any(isinstance(m, nn.ConvTranspose3d) for m in up.modules()):
            x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        x = reference_units(reference_units(x, up.modules()) + skip, level.modules())
    return x


def pointwise(head, x):
    return torch.einsum("oc,bchwd->bohwd", head.weight[:, :, 0, 0, 0], x) + head.bias.reshape(1, -1, 1, 1, 1)


@pytest.mark.parametrize("mode", ["transposed", "trilinear"])
def test_vnet_computes_what_the_functional_reference_computes(mode):
    network = with_random_normalisation(VNet(2, 3, 4, upsampling_mode=mode)).eval()
    x = image(channels=2)
    features = reference_features(network.encoder, network.decoder, x)
    torch.testing.assert_close(network.forward_heads(x)["logits"], pointwise(network.segmentation_head, features))


def test_dual_task_heads_are_those_of_the_functional_reference():
    network = with_random_normalisation(DualTaskVNet(2, 3, 4)).eval()
    x = image(channels=2)
    heads = network.forward_heads(x)
    for name in ("phi", "psi"):
        features = reference_features(network.encoder, getattr(network, f"decoder_{name}"), x)
        logits = pointwise(getattr(network, f"segmentation_head_{name}"), features)
        distance = pointwise(getattr(network, f"distance_head_{name}"), features).tanh()
        torch.testing.assert_close(heads[f"logits_{name}"], logits)
        torch.testing.assert_close(heads[f"distance_{name}"], distance)


def test_decoder_phi_has_transposed_convolutions_and_decoder_psi_none():
    network = DualTaskVNet(base_filters=2)
    transposed = [
        sum(isinstance(module, nn.ConvTranspose3d) for module in decoder.modules())
        for decoder in (network.decoder_phi, network.decoder_psi)
    ]
    assert transposed == [4, 0]


def test_encoder_doubles_the_channels_and_halves_the_extents_at_every_level():
    features = Encoder(1, 3)(image(size=(48, 16, 32)))
    assert [tuple(f.shape[1:]) for f in features] == [
        (3, 48, 16, 32),
        (6, 24, 8, 16),
        (12, 12, 4, 8),
        (24, 6, 2, 4),
        (48, 3, 1, 2),
    ]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "build, names",
    zip(NETWORKS.values(), [DUAL_HEADS, SEGMENTATION_HEADS, {"logits"}, {"logits"}], strict=True),
    ids=NETWORKS,
)
def test_forward_heads_names_the_heads_in_either_mode(build, names, training):
    heads = build(num_classes=3).train(training).forward_heads(image())
    assert set(heads) == names
    assert all(head.shape == (2, 3, 32, 16, 16) for head in heads.values())


@each_network
def test_training_forward_gives_the_heads(build):
    network = build(dropout=0.0).train()
    x = image()
    heads, expected = network(x), network.forward_heads(x)
    assert set(heads) == set(expected)
    assert all(torch.equal(heads[name], expected[name]) for name in expected)


@each_network
@pytest.mark.parametrize("in_channels, num_classes, base_filters", [(1, 1, 2), (3, 2, 4), (2, 5, 3)])
def test_evaluation_forward_is_the_mean_probability_of_the_segmentation_heads(
    build, in_channels, num_classes, base_filters
):
    network = build(in_channels=in_channels, num_classes=num_classes, base_filters=base_filters).eval()
    x = image(channels=in_channels)
    probability = network(x)
    logits = [head for name, head in network.forward_heads(x).items() if name.startswith("logits")]
    assert probability.shape == (2, num_classes, 32, 16, 16)
    assert probability.dtype == torch.float32
    assert 0 <= probability.min() < probability.max() <= 1
    torch.testing.assert_close(probability, sum(map(torch.sigmoid, logits)) / len(logits))


def test_distance_heads_saturate_at_plus_and_minus_one():
    network = DualTaskVNet(base_filters=2).eval()
    for head, bias in ((network.distance_head_phi, 50.0), (network.distance_head_psi, -50.0)):
        nn.init.constant_(head.bias, bias)
    heads = network.forward_heads(image())
    assert torch.all(heads["distance_phi"] == 1)
    assert torch.all(heads["distance_psi"] == -1)


@each_network
@pytest.mark.parametrize("call", ["forward_heads", "__call__"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "shape, text",
    [
        ((1, 2, 16, 16, 16), r"shape \(B, 1, H, W, D\) and got \[1, 2, 16, 16, 16\]: set in_channels"),
        ((1, 16, 16, 16), r"shape \(B, 1, H, W, D\) and got \[1, 16, 16, 16\]: set in_channels"),
        ((1, 1, 16, 16), r"shape \(B, 1, H, W, D\) and got \[1, 1, 16, 16\]: set in_channels"),
        ((1, 1, 24, 16, 16), r"multiple of 16 and the input has \[24, 16, 16\]: choose such a patch_size"),
        ((1, 1, 16, 16, 17), r"multiple of 16 and the input has \[16, 16, 17\]: choose such a patch_size"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_its_shape(build, training, call, shape, text):
    with pytest.raises(ValueError, match=text):
        getattr(build().train(training), call)(torch.zeros(shape))


def test_unknown_upsampling_is_refused_with_the_accepted_ones():
    with pytest.raises(ValueError, match="mode is 'nearest'"):
        VNet(upsampling_mode="nearest")


@each_network
def test_without_dropout_training_forward_is_deterministic(build):
    network, x = build(dropout=0.0).train(), image()
    first, second = network(x), network(x)
    assert all(torch.equal(first[name], second[name]) for name in first)


@each_network
def test_with_dropout_two_training_forwards_differ_and_two_evaluations_do_not(build):
    network, x = build(base_filters=4), image()
    first, second = network(x), network(x)
    assert all(not torch.equal(first[name], second[name]) for name in first)
    network.eval()
    assert torch.equal(network(x), network(x))


def channels_kept(dropped, whole):
    """Return for every channel of every sample whether `dropped` is twice `whole`; where not, it must be zero."""
    kept = (dropped - 2 * whole).abs().amax((2, 3, 4)) < 1e-5
    assert torch.all(dropped.abs().amax((2, 3, 4))[~kept] == 0)
    return kept[whole.amax((2, 3, 4)) > 1e-3]


@pytest.mark.parametrize("upsampling_mode", ["transposed", "trilinear"])
def test_dropout_takes_whole_channels_of_the_bottleneck_and_of_the_decoders_result(upsampling_mode):
    x = image()
    encoder = Encoder(1, 4, dropout=0.5)
    decoder = Decoder(4, upsampling_mode=upsampling_mode, dropout=0.5)
    encoder_without, decoder_without = copy.deepcopy(encoder), copy.deepcopy(decoder)
    encoder_without.dropout.p = decoder_without.dropout.p = 0.0
    features, whole = encoder(x), encoder_without(x)
    assert all(torch.equal(a, b) for a, b in zip(features[:-1], whole[:-1]))
    kept = [channels_kept(features[-1], whole[-1])]
    whole = decoder_without(features)
    kept.append(torch.cat([channels_kept(decoder(features), whole) for _ in range(5)]))
    assert all(0.2 < k.float().mean() < 0.8 for k in kept)


@each_network
def test_scripted_network_equals_the_eager_one_and_gives_the_heads_in_training_mode(build):
    network = build(num_classes=2, dropout=0.0).eval()
    scripted, x = torch.jit.script(network), image()
    torch.testing.assert_close(scripted(x), network(x))
    expected = network.forward_heads(x)
    heads = scripted.forward_heads(x)
    assert set(heads) == set(expected)
    assert all(torch.allclose(heads[name], expected[name], atol=1e-6) for name in expected)
    heads, expected = scripted.train()(x), network.train()(x)
    assert set(heads) == set(expected)
    assert all(torch.allclose(heads[name], expected[name], atol=1e-5) for name in expected)


@each_network
@pytest.mark.parametrize("training", [True, False])
def test_gradient_reaches_every_parameter(build, training):
    network = build(base_filters=4, dropout=0.0).train(training)
    sum((head * torch.randn_like(head)).sum() for head in network.forward_heads(image()).values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # Normalisation by the batch's own mean takes the bias of the convolution before it away.
        if not training or name.endswith("weight"):
            assert parameter.grad.abs().max() > 0, name


@each_network
def test_every_head_trains_the_encoder_and_no_other_head(build):
    network = build(dropout=0.0)
    heads = network.forward_heads(image())
    modules = {name for name, _ in network.named_children() if "head" in name}
    for name, head in heads.items():
        network.zero_grad()
        head.sum().backward(retain_graph=True)
        own = name.replace("logits", "segmentation_head").replace("distance", "distance_head")
        assert {m for m in modules if getattr(network, m).weight.grad is not None} == {own}
        assert all(parameter.grad is not None for parameter in network.encoder.parameters())


@each_network
def test_channels_last_gives_the_same_probabilities(build):
    network, x = build().eval(), image()
    expected = network(x)
    network.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(network(x.to(memory_format=torch.channels_last_3d)), expected, atol=1e-5, rtol=1e-5)


@each_network
def test_bfloat16_autocast_gives_nearly_the_same_heads(build):
    network, x = build(dropout=0.0).eval(), image()
    expected = network.forward_heads(x)
    with torch.autocast("cpu", torch.bfloat16):
        heads = network.forward_heads(x)
    for name in expected:
        torch.testing.assert_close(heads[name].float(), expected[name], atol=0.05, rtol=0.05)


# --- the heads of the single-decoder network ---


@pytest.mark.parametrize("tasks", [["segmentation"], ["distance"], ["segmentation", "distance"]], ids="-".join)
@pytest.mark.parametrize("activation, maps", [("sigmoid", 2), ("softmax", 3)])
def test_v_net_has_the_heads_of_its_tasks_and_scripts_with_them(tasks, activation, maps):
    # An integer, as a command line gives it.
    network = with_random_normalisation(VNet(1, 2, 2, tasks=tasks, activation=activation, dropout=0))
    heads = network.train()(image())
    expected = {"segmentation": ("logits", maps), "distance": ("distance", 2)}
    assert {name: head.shape[1] for name, head in heads.items()} == dict(expected[task] for task in tasks)
    x = image()
    probability = network.eval()(x)
    assert probability.shape == (2, 2, 32, 16, 16)
    torch.testing.assert_close(torch.jit.script(network)(x), probability)
    torch.testing.assert_close(torch.jit.trace(network, x)(x), probability)


def test_a_network_without_segmentation_head_segments_where_its_distance_is_negative():
    network = with_random_normalisation(VNet(1, 1, 2, tasks=["distance"])).eval()
    x = image()
    network.distance_head.bias.data -= network.forward_heads(x)["distance"].atanh().median()
    distance = network.forward_heads(x)["distance"]
    assert (distance < 0).any() and (distance > 0).any()
    assert torch.equal(network(x) > 0.5, distance < 0)


def test_without_segmentation_head_a_voxel_inside_two_classes_is_of_the_deeper_one():
    network = VNet(1, 2, 2, tasks=["distance"]).eval()
    network.distance_head.weight.data.zero_()
    network.distance_head.bias.data = torch.tensor([-0.05, -0.9]).atanh()
    assert (LabelCoding(2).decode(network(image())) == 2).all()


def test_foreground_probability_of_a_softmax_head_leaves_out_the_background():
    logits = torch.tensor([0.0, 1.0, 3.0]).log().clamp(min=-50).reshape(1, 3, 1, 1, 1)
    assert foreground_probability(logits, 2).flatten().tolist() == pytest.approx([0.25, 0.75])
    logits = torch.tensor([1.0, 3.0]).log().reshape(1, 2, 1, 1, 1)
    assert foreground_probability(logits, 2).flatten().tolist() == pytest.approx([1 / 2, 3 / 4])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tasks": []}, r"tasks is \[\]; a network has one or both of segmentation, distance"),
        ({"tasks": ["edge"]}, r"tasks is \['edge'\]"),
        ({"activation": "relu"}, "activation is 'relu'; a segmentation head has one of sigmoid, softmax"),
    ],
)
def test_v_net_refuses_unknown_heads(arguments, message):
    with pytest.raises(ValueError, match=message):
        VNet(**arguments)


# --- normalization ---


@pytest.mark.parametrize(
    "network", [DualTaskVNet, VNet, PairedVNet, DualNetworks, PyramidVNet], ids=lambda n: n.__name__
)
@pytest.mark.parametrize("kind, cls", [("group", nn.GroupNorm), ("instance", nn.InstanceNorm3d)])
def test_another_normalization_costs_no_parameter_and_keeps_crops_apart(network, kind, cls):
    batch, other = network(base_filters=2), network(base_filters=2, normalization=kind, dropout=0.0)
    count = [sum(p.numel() for p in n.parameters()) for n in (batch, other)]
    assert count[0] == count[1]
    norms = [m for m in other.modules() if isinstance(m, (nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm3d))]
    assert len(norms) > 10 and all(isinstance(m, cls) for m in norms)
    x = image(size=(32, 32, 16))
    torch.manual_seed(0)
    together = other.train()(x)
    alone = other(x[:1])
    for name, head in together.items():
        torch.testing.assert_close(head[:1], alone[name], atol=1e-3, rtol=1e-3)


def test_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match="normalization is 'layer'"):
        DualTaskVNet(base_filters=2, normalization="layer")


@pytest.mark.parametrize("tasks", [[], ["distance"], ["segmentation", "edge"]])
def test_dual_task_network_refuses_tasks_without_segmentation(tasks):
    with pytest.raises(ValueError, match=r"two decoders have 'segmentation' heads, or those and 'distance'"):
        DualTaskVNet(tasks=tasks)


def test_shipped_weights_load_into_the_dual_task_network():
    state = torch.load(Path(__file__).resolve().parents[1] / "models" / "model.pt", weights_only=True)
    DualTaskVNet(base_filters=8, normalization="group").load_state_dict(state)
