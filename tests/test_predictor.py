"""Tests of scripts/inference/predictor.py: heads, votes, flips and ensembles against sums written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.inference import Predictor, one_per_checkpoint
from scripts.networks import DualTaskVNet, VNet
from scripts.networks.heads import TASKS

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def dual() -> DualTaskVNet:
    torch.manual_seed(0)
    return DualTaskVNet(num_classes=2, base_filters=2).eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(1, 1, 16, 16, 32, generator=torch.Generator().manual_seed(1))


class Ramp(nn.Module):
    """Adds to every voxel its position along the three axes, in different units, times ``factor``."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        grid = torch.meshgrid(*[torch.arange(n, dtype=x.dtype) for n in x.shape[2:]], indexing="ij")
        return x + self.factor * (grid[0] + 10 * grid[1] + 100 * grid[2])


class Heads(nn.Module):
    """Has the heads that it is given, whatever the input."""

    def __init__(self, **heads: list[float]) -> None:
        super().__init__()
        self.heads = {name: torch.tensor(values)[None, None, None, None] for name, values in heads.items()}

    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.sigmoid(head) for name, head in self.heads.items() if "logits" in name]).mean(0)


def calls_of(network: nn.Module) -> list[str]:
    """A list to which the names of the network's parts are added as they are called."""
    called: list[str] = []
    for name, part in network.named_children():
        part.register_forward_hook(lambda *_, name=name: called.append(name))
    return called


def test_by_default_it_is_a_plain_call_of_any_network(dual, image):
    assert torch.equal(Predictor([dual])(image), dual(image))
    vnet = VNet(base_filters=2).eval()
    assert torch.equal(Predictor([vnet])(image), vnet(image))
    ramp = Ramp()
    Predictor([ramp])(image)
    assert ramp.calls == 1


def test_it_switches_its_networks_to_evaluation(dual):
    Predictor([dual.train()]).eval()
    assert not dual.training


# --- heads ---


@pytest.mark.parametrize("decoder", ["phi", "psi"])
def test_one_decoder_gives_its_own_probability_and_distance(dual, image, decoder):
    heads = dual.forward_heads(image)
    outputs = Predictor([dual], decoders=decoder, maps=["distance"])(image)
    assert outputs.shape == (1, 4, 16, 16, 32)
    assert torch.equal(outputs[:, :2], torch.sigmoid(heads[f"logits_{decoder}"]))
    assert torch.equal(outputs[:, 2:], heads[f"distance_{decoder}"])


@pytest.mark.parametrize("decoder, other", [("phi", "psi"), ("psi", "phi")])
def test_with_one_decoder_the_other_is_not_run_nor_a_distance_head_that_is_not_asked_for(dual, image, decoder, other):
    called = calls_of(dual)
    Predictor([dual], decoders=decoder)(image)
    assert called == ["encoder", f"decoder_{decoder}", f"segmentation_head_{decoder}"]
    called.clear()
    Predictor([dual], decoders=decoder, maps=["distance"])(image)
    assert f"distance_head_{decoder}" in called and f"decoder_{other}" not in called


def test_the_network_is_run_once_whatever_is_asked_for_and_the_distance_heads_only_for_maps(dual, image):
    called = calls_of(dual)
    Predictor([dual])(image)
    assert called.count("encoder") == 1 and not [name for name in called if name.startswith("distance")]
    called.clear()
    Predictor([dual], maps=["distance", "uncertainty"])(image)
    assert called.count("encoder") == 1


def test_features_are_channels_last_when_the_networks_weights_are(dual, image):
    formats = []
    dual.encoder.register_forward_hook(lambda *call: formats.append(call[2][0]))
    Predictor([dual.to(memory_format=torch.channels_last_3d)])(image.expand(2, -1, -1, -1, -1))
    assert formats[0].is_contiguous(memory_format=torch.channels_last_3d)


def test_distance_map_comes_behind_the_unchanged_probability(dual, image):
    outputs = Predictor([dual], maps=["distance"])(image)
    heads = dual.forward_heads(image)
    torch.testing.assert_close(outputs[:, :2], dual(image))
    torch.testing.assert_close(outputs[:, 2:], (heads["distance_phi"] + heads["distance_psi"]) / 2)


def test_uncertainty_is_one_where_the_heads_do_not_vote_alike():
    # Votes for foreground: logits above 0, distances below 0. Voxel by voxel: all, none, one logit, one distance.
    network = Heads(
        logits_phi=[1.0, -1.0, 1.0, 1.0],
        logits_psi=[2.0, -2.0, -1.0, 1.0],
        distance_phi=[-0.1, 0.1, -0.1, -0.1],
        distance_psi=[-0.9, 0.9, -0.1, 0.2],
    )
    outputs = Predictor([network], maps=["distance", "uncertainty"])(torch.zeros(1))
    assert outputs[0, 2].flatten().tolist() == [0, 0, 1, 1]
    assert outputs[0, 1].flatten().tolist() == pytest.approx([-0.5, 0.5, -0.1, 0.05])
    # Of decoder phi alone the two heads agree everywhere.
    assert Predictor([network], decoders="phi", maps=["uncertainty"])(torch.zeros(1))[0, 1].any().item() is False


def test_uncertainty_of_two_segmentations_without_distance_heads():
    network = Heads(logits_phi=[1.0, -1.0], logits_psi=[1.0, 1.0])
    assert Predictor([network], maps=["uncertainty"])(torch.zeros(1))[0, 1].flatten().tolist() == [0, 1]


# --- flips and ensembles ---


def test_one_flip_averages_the_prediction_with_that_of_the_mirrored_input_mirrored_back():
    x = torch.zeros(1, 1, 3, 2, 2)
    ramp = Ramp()
    averaged = Predictor([ramp], flip_axes=[0])(x)
    # Along the first axis 0, 1, 2 and mirrored back 2, 1, 0: the mean is 1 everywhere; the others stay.
    expected = Ramp()(x) - torch.tensor([-1.0, 0.0, 1.0])[:, None, None]
    assert torch.equal(averaged, expected)
    assert ramp.calls == 2


def test_flips_are_the_mean_over_all_subsets_of_the_axes(dual, image):
    expected = dual(image)
    for axes in ([2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4]):
        expected = expected + dual(image.flip(axes)).flip(axes)
    torch.testing.assert_close(Predictor([dual], flip_axes=[0, 1, 2])(image), expected / 8)


def test_flips_give_what_is_symmetric_under_them(dual, image):
    mirrored = image + image.flip(3)
    averaged = Predictor([dual], flip_axes=[1])(mirrored)
    torch.testing.assert_close(averaged, averaged.flip(3))
    assert not torch.allclose(dual(mirrored), dual(mirrored).flip(3))


def test_flips_average_the_maps_too():
    # The network's logits do not depend on the input, so that a flip along the last axis mirrors the votes alone.
    network = Heads(logits_phi=[1.0, 1.0, 1.0], logits_psi=[1.0, 1.0, -1.0])
    outputs = Predictor([network], maps=["uncertainty"], flip_axes=[2])(torch.zeros(1, 1, 1, 1, 3))
    assert outputs[0, 1].flatten().tolist() == [0.5, 0, 0.5]


def test_ensemble_is_the_mean_of_its_members(image):
    members = [nn.Conv3d(1, 2, 1) for _ in range(3)]
    expected = (members[0](image) + members[1](image) + members[2](image)) / 3
    torch.testing.assert_close(Predictor(members)(image), expected)


def test_ensemble_and_flips_together_average_over_all_pairs():
    x = torch.zeros(1, 1, 3, 1, 1)
    averaged = Predictor([Ramp(1.0), Ramp(4.0)], flip_axes=[0])(x)
    assert torch.equal(averaged, torch.full_like(x, 2.5))


def test_a_list_of_weights_gives_one_independent_network_each():
    network = nn.Linear(2, 2)
    assert one_per_checkpoint(network, "a.pt") == [network]
    networks = one_per_checkpoint(network, ["a.pt", "b.pt", "c.pt"])
    assert networks[0] is network and len(networks) == 3
    networks[1].weight.zero_()
    assert network.weight.any() and networks[2].weight.any()


# --- refusals ---


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoders": "chi"}, "decoders is 'chi'; it is 'both', 'phi' or 'psi'"),
        ({"maps": ["entropy"]}, r"maps is \['entropy'\]; there are distance, uncertainty"),
        ({"flip_axes": [0, 0]}, r"flip_axes is \[0, 0\]; it is a list of different axes out of 0, 1 and 2"),
        ({"flip_axes": [3]}, r"flip_axes is \[3\]"),
        ({"flip_axes": "true"}, "flip_axes is true"),
        ({"flip_axes": True}, "flip_axes is True"),
    ],
)
def test_unknown_options_are_quoted_with_what_there_is(options, message):
    with pytest.raises(ValueError, match=message):
        Predictor([nn.Identity()], **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoders": "psi"}, r"decoders is 'psi' and the network has only \['logits'\]: set it to 'both'"),
        ({"maps": ["distance"]}, r"save_distance needs a distance head and the network has only \['logits'\]"),
        ({"maps": ["uncertainty"]}, r"save_uncertainty needs two heads that vote, and the network has only one"),
    ],
)
def test_a_network_without_the_heads_is_refused_by_the_name_of_the_option(image, options, message):
    with pytest.raises(ValueError, match=message):
        Predictor([VNet(base_filters=2).eval()], **options)(image)


@pytest.mark.parametrize("tasks, heads", [(("distance",), "distance"), (TASKS, "all")])
def test_heads_of_a_vnet_with_one_task_or_a_softmax_are_combined(image, tasks, heads):
    network = VNet(base_filters=2, tasks=tasks, activation="softmax").eval()
    found = network.forward_heads(image)
    inside = torch.sigmoid(-1500 * found["distance"])
    expected = inside if heads == "distance" else (inside + found["logits"].softmax(1)[:, 1:]) / 2
    torch.testing.assert_close(Predictor([network], heads=heads)(image), expected)


def test_an_empty_list_of_weights_is_refused():
    with pytest.raises(ValueError, match="ckpt_path is an empty list"):
        one_per_checkpoint(nn.Identity(), [])


@torch.no_grad()
def test_probability_beside_the_maps_is_that_of_the_networks_evaluation_mode():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 16, 16, 16)
    for network in (VNet(1, 2, 2, tasks=["distance"]), VNet(1, 2, 2, tasks=TASKS, activation="softmax")):
        network.eval()
        maps = Predictor([network], maps=["distance"])(x)
        torch.testing.assert_close(maps[:, :2], network(x))
        assert torch.equal(maps[:, 2:], network.forward_heads(x)["distance"])
