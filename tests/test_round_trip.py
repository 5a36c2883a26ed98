"""Tests of benchmarks/round_trip.py: Dice of known maps, the offline map against scipy, the rows of small masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

from benchmarks.round_trip import FACTORS, offline_map, round_trip, rows, ways


def box(*, size: int = 16, first: int = 4, last: int = 12) -> torch.Tensor:
    """A mask (1, 1, size, size, size) that is 1 from ``first`` to before ``last`` along every axis."""
    mask = torch.zeros(1, 1, size, size, size)
    mask[..., first:last, first:last, first:last] = 1
    return mask


def test_round_trip_is_the_dice_of_the_map_s_negative_voxels():
    mask = box()
    assert round_trip(lambda patch: 1 - 2 * patch, mask) == 1
    assert round_trip(torch.ones_like, mask) == 0
    # Shifted by two of its eight voxels along one axis, six eighths of both masks are common.
    assert round_trip(lambda patch: 1 - 2 * patch.roll(2, 2), mask) == pytest.approx(6 / 8)


def test_offline_map_at_full_size_is_scipy_s():
    mask = box()[0, 0].numpy() > 0.5
    outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
    expected = outside / outside.max() - inside / inside.max()
    assert np.array_equal(offline_map(box(), 1)[0, 0].numpy(), expected)


def test_offline_map_below_full_size_is_that_of_a_sampled_mask_interpolated_back():
    mask = torch.from_numpy(np.random.default_rng(0).random((12, 16, 20)) > 0.7)
    small = mask[np.ix_(*(np.round(np.linspace(0, n - 1, n // 2)).astype(int) for n in mask.shape))]
    outside, inside = distance_transform_edt(~small), distance_transform_edt(small)
    signed = torch.from_numpy(outside / outside.max() - inside / inside.max())[None, None]
    expected = F.interpolate(signed, size=mask.shape, mode="trilinear", align_corners=True)
    assert offline_map(mask[None, None].float(), 0.5).numpy() == pytest.approx(expected.numpy(), abs=1e-9)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("way", ways())
def test_every_map_has_the_patch_s_shape_and_the_sign_of_its_middle_and_corner(way, factor):
    mask = torch.zeros(1, 1, 40, 32, 48)
    mask[..., 8:32, 8:24, 12:36] = 1
    signed = ways()[way](factor)(mask)
    assert signed.shape == mask.shape
    assert signed[0, 0, 20, 16, 24] < 0 < signed[0, 0, 0, 0, 0]


def test_rows_lose_nothing_at_full_size_and_more_the_coarser_the_map():
    found = rows([box(size=30, first=6, last=25), box(size=30, first=2, last=19)], 1)
    assert [(row["map"], row["factor"]) for row in found] == [(way, factor) for way in ways() for factor in FACTORS]
    assert found[0]["ratio"] == 1 and all(row["ratio"] > 0 for row in found)
    for way in ways():
        dice = [row["dice"] for row in found if row["map"] == way]
        assert dice[0] == 1 > dice[-1]
    assert all(row["lowest"] <= row["dice"] for row in found)
