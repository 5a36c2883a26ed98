"""Tests of scripts/networks/layers.py: torch's layers in float64 are the reference, for values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.networks import DualTaskVNet
from scripts.networks.layers import GroupNorm, PointwiseConv3d

SHAPES = [(2, 8, 5, 3, 4), (1, 16, 1, 1, 1), (3, 6, 2, 7, 1), (2, 32, 4, 4, 2)]
LAYERS = {
    "group-norm": lambda c: (GroupNorm(2, c), nn.GroupNorm(2, c)),
    "group-norm-of-one-group": lambda c: (GroupNorm(1, c), nn.GroupNorm(1, c)),
    "pointwise-to-one": lambda c: (PointwiseConv3d(c, 1), nn.Conv3d(c, 1, 1)),
    "pointwise-to-three": lambda c: (PointwiseConv3d(c, 3), nn.Conv3d(c, 3, 1)),
}
each_layer = pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pair(build, channels):
    """The layer and torch's, in float64, with the same random weights."""
    ours, reference = build(channels)
    for weight in ours.parameters():
        nn.init.normal_(weight)
    reference.load_state_dict(ours.state_dict())  # strict: the names are torch's
    return ours, reference.double()


def results(layer, x, grad):
    """Output and the gradients of input, weight and bias."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(grad.to(y))
    return [y.detach(), x.grad, *(weight.grad for weight in layer.parameters())]


@each_layer
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.channels_last_3d, torch.contiguous_format], ids=str)
def test_values_and_gradients_are_those_of_torch_in_float64(build, shape, memory_format):
    ours, reference = pair(build, shape[1])
    # A mean far from 0, where a gradient made of large differences would lose its digits.
    x = (3 * torch.randn(shape) + 10).to(memory_format=memory_format)
    expected_y = reference(x.double())
    grad = torch.randn(expected_y.shape)
    for found, expected in zip(results(ours, x, grad), results(reference, x.double(), grad), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-4)


def test_group_norm_in_bfloat16_has_the_gradient_of_its_rounded_input():
    ours, reference = pair(LAYERS["group-norm"], 8)
    x = (torch.randn(2, 8, 4, 2, 4) + 1).bfloat16().to(memory_format=torch.channels_last_3d)
    grad = torch.randn(x.shape).bfloat16()
    found = results(ours, x, grad)
    assert [value.dtype for value in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for value, expected in zip(found, results(reference, x.double(), grad), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=2e-2, atol=2e-2)


def test_group_norm_computes_its_own_gradient_in_channels_last_alone():
    x = torch.randn(2, 8, 4, 4, 4, requires_grad=True)
    name = type(GroupNorm(2, 8)(x.to(memory_format=torch.channels_last_3d)).grad_fn).__name__
    assert name == "_ChannelsLastGroupNormBackward"
    assert type(GroupNorm(2, 8)(x).grad_fn).__name__ == "NativeGroupNormBackward0"


def test_gradient_of_an_expanded_tensor_is_that_of_torch():
    """The sum over all voxels has a gradient without memory of its own."""
    ours, reference = pair(LAYERS["group-norm"], 8)
    x = torch.randn(2, 8, 4, 2, 4).to(memory_format=torch.channels_last_3d)
    grad = torch.tensor(0.5).expand(x.shape)
    for found, expected in zip(results(ours, x, grad), results(reference, x.double(), grad), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-4)


def test_second_derivatives_are_refused_instead_of_wrong():
    x = torch.randn(1, 8, 2, 2, 2).to(memory_format=torch.channels_last_3d).requires_grad_()
    (gradient,) = torch.autograd.grad(GroupNorm(2, 8)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@each_layer
def test_scripted_layers_compute_the_same(build):
    ours, _ = build(8)
    x = torch.randn(2, 8, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(torch.jit.script(ours)(x), ours(x))


@each_layer
def test_autocast_gives_the_type_that_torch_gives(build):
    ours, reference = build(8)
    x = torch.randn(2, 8, 4, 4, 4).to(memory_format=torch.channels_last_3d).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x.bfloat16()).dtype == reference(x.bfloat16()).dtype


def test_network_has_the_gradients_of_torchs_layers():
    """One training step of the whole network against the same network in the other memory format, in float64."""
    network = DualTaskVNet(base_filters=4, normalization="group", dropout=0.0)
    reference = DualTaskVNet(base_filters=4, normalization="group", dropout=0.0).double()
    reference.load_state_dict(network.state_dict())
    network.to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 1, 32, 16, 16)
    for net, image in ((network, x.to(memory_format=torch.channels_last_3d)), (reference, x.double())):
        sum(head.square().mean() for head in net(image).values()).backward()
    for (name, weight), other in zip(network.named_parameters(), reference.parameters(), strict=True):
        scale = other.grad.abs().max()
        assert (weight.grad - other.grad).abs().max() <= 2e-3 * scale + 1e-6, name
