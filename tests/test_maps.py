"""Tests of scripts/inference/decoding.py: which maps are wanted, and splitting them off the probability."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from scripts.inference import SplitMapsd, extra_maps


def test_maps_are_split_off_the_probability_in_their_order_and_keep_their_geometry():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    maps = MetaTensor(torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, 2, 2), affine=affine)
    result = SplitMapsd("pred", num_classes=2, maps=["distance", "uncertainty"])({"pred": maps, "other": 1})
    assert result["other"] == 1
    for key, values in {"pred": [0, 1], "distance": [2, 3], "uncertainty": [4, 5]}.items():
        assert result[key][:, 0, 0, 0].tolist() == values
        assert torch.equal(result[key].affine, affine.double())


@pytest.mark.parametrize(
    "distance, uncertainty, expected",
    [
        (False, False, []),
        (True, False, ["distance"]),
        (False, True, ["uncertainty"]),
        (True, True, ["distance", "uncertainty"]),
    ],
)
def test_maps_are_named_by_their_switches(distance, uncertainty, expected):
    assert extra_maps(save_distance=distance, save_uncertainty=uncertainty) == expected
