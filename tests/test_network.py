"""Tests of scripts/networks/network.py and of what training writes of it: model.json builds every network anew."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import ROOT, merged
from monai.bundle import ConfigParser

from scripts.networks import DualTaskVNet, Network, VNet

TRAIN = "configs/train.json"
METHODS = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.json"))
# Everything that a training can be told to build: methods, backbones, and the ablations that exchange the network.
OVERLAYS = [
    [],
    *[[f"configs/methods/{name}.json"] for name in METHODS],
    *[[f"configs/networks/{path.name}"] for path in sorted((ROOT / "configs" / "networks").glob("*.json"))],
    *[
        [f"configs/methods/{path.name.split('_')[0]}.json", f"configs/ablations/{path.name}"]
        for path in sorted((ROOT / "configs" / "ablations").glob("dt*.json"))
        if "network_def" in path.read_text(encoding="utf-8")
    ],
]


def test_arguments_are_those_given_and_the_defaults():
    network = DualTaskVNet(2, base_filters=2, tasks=["segmentation"])
    assert network.arguments == {
        "in_channels": 2,
        "num_classes": 1,
        "base_filters": 2,
        "tasks": ["segmentation"],
        "normalization": "batch",
        "dropout": 0.5,
        "align_corners": False,
    }


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_keeps_weights_and_arguments(duplicate):
    network = VNet(base_filters=3, tasks=["distance"])
    again = duplicate(network)
    assert again.arguments == network.arguments and again.arguments is not network.arguments
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))


def test_an_argument_that_does_not_exist_is_refused_as_ever():
    with pytest.raises(TypeError, match="unexpected keyword argument 'filters'"):
        VNet(filters=2)


def test_the_base_has_no_heads():
    with pytest.raises(NotImplementedError):
        Network().forward_heads(torch.zeros(1))


def test_a_call_returns_the_heads_in_training_mode_and_the_probability_in_evaluation_mode():
    class Twice(Network):
        def forward_heads(self, x):
            return {"logits": 2 * x}

        def probability(self, x):
            return torch.sigmoid(2 * x)

    network, x = Twice(), torch.ones(1)
    assert list(network(x)) == ["logits"] and network(x)["logits"] == 2
    assert network.eval()(x) == torch.sigmoid(torch.tensor(2.0))


@pytest.mark.parametrize("normalization", ["batch", "group"])
@pytest.mark.parametrize("overlays", OVERLAYS, ids=lambda files: "+".join(Path(file).stem for file in files) or "none")
@torch.no_grad()
def test_inference_json_and_model_json_build_the_network_that_was_trained(overlays, normalization, tmp_path):
    settings = {"in_channels": 2, "num_classes": 3, "base_filters": 4, "normalization": normalization}
    parser = merged(TRAIN, *overlays)
    parser.update({**settings, "ckpt_dir": str(tmp_path), "network_def#dropout": 0.25})
    parser["train"]["inference_overlay"]["description"] = None  # that of a run, with its data
    parser.get_parsed_content("train#inference_overlay").write(tmp_path / "model.json")
    trained = parser.get_parsed_content("network_def").eval()

    content = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert {key: content[key] for key in settings} == settings
    definition = content["network_def"]
    assert definition["_target_"] == parser["network_def#_target_"] and definition["dropout"] == 0.25
    assert all(definition[key] == f"@{key}" for key in settings if key in definition)

    inference = ConfigParser()
    inference.read_config([str(ROOT / "configs" / "inference.json"), str(tmp_path / "model.json")])
    built = inference.get_parsed_content("network_def").eval()
    assert type(built) is type(trained)
    built.load_state_dict(trained.state_dict())
    image = torch.randn(1, 2, 32, 16, 16)
    assert torch.equal(built(image), trained(image))
