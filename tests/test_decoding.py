"""Tests of scripts/inference/decoding.py and scripts/data/colours.py: thresholds, original label values, colours."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.data import DataError, LabelCoding
from scripts.data.colours import class_colours, write_colour_table
from scripts.inference import OriginalValuesd, Thresholdd


def decoded(probability: torch.Tensor, threshold, *, regions=None) -> torch.Tensor:
    coding = LabelCoding(len(probability), regions)
    moved = Thresholdd("pred", threshold, len(probability))({"pred": probability})["pred"]
    return coding.decode(moved[None])[0]


def test_half_leaves_probabilities_as_they_are():
    probability = torch.rand(2, 3, 3, 3)
    assert Thresholdd("pred", 0.5, 2)({"pred": probability})["pred"] is probability


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7, 0.95])
def test_one_class_is_foreground_above_its_threshold(threshold):
    probability = torch.linspace(0, 1, 1001).reshape(1, 7, 11, 13)
    before = probability.clone()
    assert torch.equal(decoded(probability, threshold).bool(), probability > threshold)
    assert torch.equal(probability, before)


def test_overlapping_regions_have_a_threshold_each():
    probability = torch.rand(2, 4, 4, 4)
    mask = decoded(probability, [0.2, 0.8], regions=[[1, 2], [2]])
    assert torch.equal(mask.bool(), probability > torch.tensor([0.2, 0.8]).reshape(2, 1, 1, 1))


def test_of_exclusive_classes_the_one_furthest_above_its_threshold_is_taken():
    # 0.45 is a quarter of the way from 0.4 on, as (0.45 - 0.4) / 0.6 = 0.083; 0.5 is (0.5 - 0.1) / 0.9 = 0.444.
    voxels = torch.tensor([[0.45, 0.5], [0.45, 0.05], [0.3, 0.05], [0.9, 0.3], [0.3, 0.11]]).T.reshape(2, 5, 1, 1)
    assert decoded(voxels, [0.4, 0.1]).flatten().tolist() == [2, 1, 0, 1, 2]


@pytest.mark.parametrize("threshold", [0, 1, -0.1, math.nan, "0.5", [0.5], [0.5, None], [0.5, 0.5, 0.5]])
def test_other_thresholds_are_refused(threshold):
    with pytest.raises(DataError, match=r"above 0 and below 1, or a list of 2"):
        Thresholdd("pred", threshold, 2)


@pytest.mark.parametrize("values, dtype", [([3, 1], torch.uint8), ([205, 420], torch.int32)])
def test_masks_get_the_label_values_of_the_original_files(values, dtype):
    pred = torch.tensor([0, 1, 2, 1], dtype=torch.uint8).reshape(1, 4, 1, 1)
    result = OriginalValuesd("pred", LabelCoding(2), values)({"pred": pred})
    assert result["mask"].dtype == dtype
    assert result["mask"].flatten().tolist() == [0, values[0], values[1], values[0]]
    assert result["pred"] is pred and pred.flatten().tolist() == [0, 1, 2, 1]  # clients go by the classes


def test_without_label_values_masks_stay_as_they_are():
    pred = torch.ones(1, 2, 2, 2, dtype=torch.uint8)
    assert OriginalValuesd("pred", LabelCoding(1, [[1]]), None)({"pred": pred})["mask"] is pred


@pytest.mark.parametrize("values", [[1], [1, 1], [0, 1], [1, 70000], [1, 2.0], [1, 2, 3]])
def test_other_label_values_are_refused(values):
    with pytest.raises(DataError, match="label_values is .* 2 different whole numbers"):
        OriginalValuesd("pred", LabelCoding(2), values)


def test_label_values_of_overlapping_regions_are_refused():
    with pytest.raises(DataError, match="not for overlapping regions"):
        OriginalValuesd("pred", LabelCoding(2, [[1, 2], [2]]), [1, 2])


def test_colour_table_names_every_label_value_as_slicer_reads_it(tmp_path):
    write_colour_table(tmp_path / "a.ctbl", ["left atrium", "Vorhof ä"], [3, 420])
    lines = (tmp_path / "a.ctbl").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#")
    assert lines[1:] == ["0 background 0 0 0 0", "3 left_atrium 230 159 0 255", "420 Vorhof_ä 86 180 233 255"]
    assert class_colours(9)[7:] == class_colours(2) and len(set(class_colours(7))) == 7
