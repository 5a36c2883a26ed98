"""Tests of tools/reports/heads.py: every head of saved weights, drawn with a reference on the network's grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blob, las, save
from matplotlib.image import imread

from scripts.data import DataError
from scripts.networks import DualTaskVNet, Network, VNet
from scripts.pictures.panels import new_figure
from scripts.training.overlay import definition
from tools.reports import heads
from tools.reports.heads import heads_figure, predict_heads

SETTINGS = {
    "in_channels": 1,
    "num_classes": 2,
    "class_names": ["lower", "upper"],
    "base_filters": 2,
    "patch_size": [16, 16, 16],
    "stride": [8, 8, 8],
}


def trained(folder: Path, network: Network, **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(network.state_dict(), folder / "model.pt")
    content = {**SETTINGS, "spacing": None, **settings, "network_def": definition(network, SETTINGS)}
    (folder / "model.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def case(tmp_path) -> tuple[str, str]:
    image, label = blob((16, 16, 16), seed=0, num_classes=2)
    affine = las((1.0, 1.0, 1.0))
    return save(image, affine, tmp_path / "image.nii.gz"), save(label, affine, tmp_path / "label.nii.gz")


def test_heads_are_those_of_the_saved_weights(tmp_path, case):
    torch.manual_seed(0)
    network = DualTaskVNet(num_classes=2, base_filters=2).eval()
    image, found, classes = predict_heads(trained(tmp_path / "models", network), case[0])
    with torch.no_grad():
        expected = network.forward_heads(image.as_tensor()[None])
    assert found.keys() == expected.keys() and classes == 2
    for name, head in expected.items():
        torch.testing.assert_close(found[name], head[0], atol=1e-5, rtol=1e-4)


def test_reference_is_drawn_on_the_grid_of_the_network_and_for_its_class(tmp_path, case, monkeypatch):
    drawn = {}

    monkeypatch.setattr(heads, "crops_figure", lambda crops, **_: drawn.update(vars(crops[0])) or new_figure(1, 1))
    network = DualTaskVNet(num_classes=2, base_filters=2)
    models = trained(tmp_path / "models", network, spacing=[0.5, 0.5, 0.5])
    heads_figure(models, *case, title="", path=tmp_path / "a.png", channel=1, values=[2])
    assert drawn["image"].shape == drawn["reference"].shape == (31, 31, 31)
    assert drawn["aspect"] == 1 and list(drawn["distances"]) == ["distance phi", "distance psi"]
    label = blob((16, 16, 16), seed=0, num_classes=2)[1][::-1]  # stored towards the left
    assert np.array_equal(drawn["reference"][::2, ::2, ::2], label == 2)


def test_a_network_with_one_head_is_drawn_too(tmp_path, case):
    models = trained(tmp_path / "models", VNet(num_classes=2, base_filters=2))
    assert imread(heads_figure(models, *case, title="", path=tmp_path / "a.png")).std() > 0.1


def test_a_folder_without_weights_is_named(tmp_path, case):
    with pytest.raises(DataError, match=r"model\.json does not exist"):
        predict_heads(tmp_path, case[0])
