"""Tests of scripts/data/transforms.py: label values, foreground channels and pre-generated distance maps."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT, small
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from scripts.data import DecodeProbabilitiesd, EncodeLabelsd, LabelCoding, PreGeneratedMapd
from scripts.distance import ExactDistance, SegmentationToDistance

TWO = LabelCoding(2)
REGIONS = LabelCoding(2, [[1, 2], [2]])


def volume(values: list[float]) -> torch.Tensor:
    """One channel (1, n, 1, 1) of the values."""
    return torch.tensor(values)[None, :, None, None]


@pytest.mark.parametrize(
    "coding, channels", [(TWO, [[0, 1, 0], [0, 0, 1]]), (REGIONS, [[0, 1, 1], [0, 0, 1]])], ids=["exclusive", "regions"]
)
def test_encoding_makes_one_channel_per_class_without_a_batch_axis(coding, channels):
    encoded = EncodeLabelsd("label", coding)({"label": volume([0.0, 1.0, 2.0]), "image": 5})
    assert encoded["image"] == 5
    assert encoded["label"].dtype == torch.float32
    assert encoded["label"][:, :, 0, 0].tolist() == channels


@pytest.mark.parametrize(
    "coding, values", [(TWO, [[0, 1, 2]]), (REGIONS, [[0, 1, 1], [0, 0, 1]])], ids=["exclusive", "regions"]
)
def test_decoding_makes_label_values_or_region_maps_of_probabilities(coding, values):
    probability = torch.cat([volume([0.4, 0.9, 0.6]), volume([0.3, 0.2, 0.8])])
    decoded = DecodeProbabilitiesd("pred", coding)({"pred": probability})
    assert decoded["pred"].dtype == torch.uint8
    assert decoded["pred"][:, :, 0, 0].tolist() == values


def test_several_keys_are_transformed_alike():
    data = {"a": volume([1.0]), "b": volume([1.0])}
    encoded = EncodeLabelsd(["a", "b"], TWO)(data)
    assert encoded["a"].shape == encoded["b"].shape == (2, 1, 1, 1)
    assert data["a"].shape == (1, 1, 1, 1)  # the input dictionary is left alone


@pytest.mark.parametrize("kind", [EncodeLabelsd, DecodeProbabilitiesd])
def test_missing_key_is_an_error_unless_it_is_allowed(kind):
    with pytest.raises(KeyError, match="label"):
        kind("label", TWO)({"image": 1})
    assert kind("label", TWO, allow_missing_keys=True)({"image": 1}) == {"image": 1}


@pytest.mark.parametrize("kind", [EncodeLabelsd, DecodeProbabilitiesd])
def test_the_geometry_of_a_volume_is_kept(kind):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    result = kind("x", LabelCoding(1))({"x": MetaTensor(torch.zeros(1, 2, 2, 2), affine=affine)})
    assert torch.equal(result["x"].affine, affine.double())


# --- PreGeneratedMapd ---


def box_label() -> torch.Tensor:
    label = torch.zeros(1, 8, 8, 8)
    label[:, 2:5, 2:6, 3:6] = 1
    label[:, 5:7, 2:6, 3:6] = 2
    return label


def test_pre_generated_map_is_the_operators_map_of_the_whole_volume_for_every_class():
    operator = SegmentationToDistance(ExactDistance(), factor=1)
    data = PreGeneratedMapd("label", TWO, operator)({"label": box_label()})
    assert torch.equal(data["label"], box_label())
    assert torch.equal(data["distance"], operator(TWO.encode(box_label()[None]))[0])
    assert data["distance"].shape == (2, 8, 8, 8)
    for c in range(2):
        assert (data["distance"][c][box_label()[0] == c + 1] < 0).all()
        assert (data["distance"][c][box_label()[0] != c + 1] > 0).all()


def test_unlabeled_cases_get_no_map():
    data = {"image": torch.zeros(1, 8, 8, 8)}
    assert PreGeneratedMapd("label", TWO, SegmentationToDistance(ExactDistance()))(data) == data


class Scaled(torch.nn.Module):
    """An operator whose result would carry a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x


def test_map_carries_no_gradient_into_the_data():
    assert not PreGeneratedMapd("label", TWO, Scaled())({"label": box_label()})["distance"].requires_grad


@pytest.mark.parametrize("patch", [[16, 16, 16], [32, 32, 32]], ids=["crops", "padded"])
def test_maps_of_the_ablation_are_cropped_with_their_labels_and_say_outside_where_they_are_padded(
    tiny, tmp_path, monkeypatch, patch
):
    monkeypatch.chdir(ROOT)
    parser = ConfigParser()
    parser.read_config(["configs/train.json", "configs/ablations/pre_generated_maps.json"])
    parser.update(small(tiny, tmp_path, patch_size=patch, segmentation_to_distance__factor=1))
    batches = iter(parser.get_parsed_content("train#dataloader"))
    for _ in range(3):
        batch = next(batches)
        assert batch["distance"].shape == (2, 1, *patch)
        assert torch.equal(batch["distance"] < 0, batch["label"] == 1)
        assert (batch["distance"][batch["label"] == 0] > 0).all()
    assert "distance" not in next(iter(parser.get_parsed_content("train#unlabeled_dataloader")))
