"""Tests of scripts/distance/nearest.py: both ways against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from scripts.distance.nearest import Coding, _by_passes, _by_scipy

# What a CPU runs and what other devices run.
both_ways = pytest.mark.parametrize("nearest_seed", [_by_scipy, _by_passes])


def sparse(shape: tuple[int, ...], share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def lengths_to(source: torch.Tensor, spacing: tuple[float, ...]) -> np.ndarray:
    """The distance (N, H, W, D) of every voxel to the voxel that ``source`` names."""
    shape = source.shape[1:]
    found = np.unravel_index(source.numpy(), shape)
    return np.sqrt(sum(((x - y) * s) ** 2 for x, y, s in zip(np.indices(shape), found, spacing)))


@both_ways
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.7, 2.5, 1.0)])
@pytest.mark.parametrize("share", [0.0005, 0.02, 0.5])
def test_distance_is_scipys_and_the_source_is_a_seed_at_that_distance(share, spacing, nearest_seed):
    seeds = np.stack([sparse((23, 31, 18), share, seed) for seed in range(3)])
    distance, source = nearest_seed(torch.from_numpy(seeds), spacing, with_source=True)
    expected = np.stack([distance_transform_edt(~volume, sampling=spacing) for volume in seeds])
    np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(lengths_to(source, spacing), expected, rtol=1e-6)
    assert np.take_along_axis(seeds.reshape(3, -1), source.flatten(1).long().numpy(), 1).all()


@both_ways
def test_one_seed_in_a_corner_is_the_nearest_of_all_voxels(nearest_seed):
    seeds = torch.zeros(1, 9, 41, 30, dtype=torch.bool)
    seeds[0, 0, 0, 0] = True
    distance, source = nearest_seed(seeds, (1, 1, 1), with_source=True)
    assert not source.any()
    np.testing.assert_allclose(distance[0].numpy(), distance_transform_edt(~seeds[0].numpy()), rtol=1e-6)


@both_ways
def test_without_source_the_distance_is_the_same(nearest_seed):
    seeds = torch.from_numpy(sparse((2, 12, 9, 14), 0.01))
    distance, source = nearest_seed(seeds, (1, 1, 1), with_source=False)
    assert source is None
    assert torch.equal(distance, nearest_seed(seeds, (1, 1, 1), with_source=True)[0])


@both_ways
def test_a_volume_without_seeds_has_distance_zero_beside_others_and_is_its_own_source(nearest_seed):
    seeds = torch.zeros(2, 3, 4, 5, dtype=torch.bool)
    seeds[1, 0, 0, 0] = True
    distance, source = nearest_seed(seeds, (1, 1, 1), with_source=True)
    assert not distance[0].any()
    assert source[0].flatten().tolist() == list(range(60))
    assert distance[1, 2, 3, 4].item() == pytest.approx(math.sqrt(4 + 9 + 16))
    assert not source[1].any()


@pytest.mark.parametrize("extents, dtype", [((112, 112, 80), torch.int32), ((600, 600, 600), torch.int64)])
def test_integers_have_room_for_the_largest_distance_and_are_as_short_as_that_allows(extents, dtype):
    coding = Coding(extents, (1.0, 1.0, 1.0))
    assert coding.dtype == dtype
    assert coding.infinite_cost > sum((n - 1) ** 2 for n in extents)
    assert 2**coding.bits >= max(extents)
    assert 2 * coding.infinity < torch.iinfo(dtype).max


def test_a_line_that_needs_long_integers_has_scipys_distances():
    seeds = sparse((2, 2, 1100), 0.002, seed=3)
    seeds[0, 0, 0] = True
    assert Coding(seeds.shape, (1.0, 1.0, 1.0)).dtype == torch.int64
    distance, source = _by_passes(torch.from_numpy(seeds)[None], (1, 1, 1), with_source=True)
    np.testing.assert_allclose(distance[0].numpy(), distance_transform_edt(~seeds), rtol=1e-6)
    np.testing.assert_allclose(lengths_to(source, (1, 1, 1))[0], distance_transform_edt(~seeds), rtol=1e-6)
