"""Tests of scripts/distance/nearest.py and resize.py: scipy, all pairs of voxels and torch's own interpolation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

from scripts.distance import nearest
from scripts.distance.nearest import Coding, cheapest_source, nearest_seed
from scripts.distance.resize import resize


def sparse(shape: tuple[int, ...], share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def lengths_to(source: torch.Tensor, spacing: tuple[float, ...]) -> np.ndarray:
    """The distance (N, H, W, D) of every voxel to the voxel that ``source`` names."""
    shape = source.shape[1:]
    found = np.unravel_index(source.numpy(), shape)
    return np.sqrt(sum(((x - y) * s) ** 2 for x, y, s in zip(np.indices(shape), found, spacing)))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.7, 2.5, 1.0)])
@pytest.mark.parametrize("share", [0.0005, 0.02, 0.5])
@pytest.mark.parametrize("piece", [64, nearest.CPU_PIECE])
def test_distance_is_scipys_and_the_source_is_a_seed_at_that_distance(monkeypatch, piece, share, spacing):
    # Small pieces stop at different offsets; the three volumes share one call.
    monkeypatch.setattr(nearest, "CPU_PIECE", piece)
    seeds = np.stack([sparse((23, 31, 18), share, seed) for seed in range(3)])
    distance, source = nearest_seed(torch.from_numpy(seeds), spacing, with_source=True)
    expected = np.stack([distance_transform_edt(~volume, sampling=spacing) for volume in seeds])
    np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(lengths_to(source, spacing), expected, rtol=1e-6)
    assert np.take_along_axis(seeds.reshape(3, -1), source.flatten(1).long().numpy(), 1).all()


def test_one_seed_in_a_corner_is_the_nearest_of_all_voxels():
    # The farthest voxel is as far as the bound on the distances allows the passes to look.
    seeds = torch.zeros(1, 9, 41, 30, dtype=torch.bool)
    seeds[0, 0, 0, 0] = True
    distance, source = nearest_seed(seeds, (1, 1, 1), with_source=True)
    assert not source.any()
    np.testing.assert_allclose(distance[0].numpy(), distance_transform_edt(~seeds[0].numpy()), rtol=1e-6)


def test_without_source_the_distance_is_the_same():
    seeds = torch.from_numpy(sparse((2, 12, 9, 14), 0.01))
    distance, source = nearest_seed(seeds, (1, 1, 1), with_source=False)
    assert source is None
    assert torch.equal(distance, nearest_seed(seeds, (1, 1, 1), with_source=True)[0])


def test_a_volume_without_seeds_has_distance_zero_beside_others_and_is_its_own_source():
    seeds = torch.zeros(2, 3, 4, 5, dtype=torch.bool)
    seeds[1, 0, 0, 0] = True
    distance, source = nearest_seed(seeds, (1, 1, 1), with_source=True)
    assert not distance[0].any()
    assert source[0].flatten().tolist() == list(range(60))
    assert distance[1, 2, 3, 4].item() == pytest.approx(math.sqrt(4 + 9 + 16))
    assert not source[1].any()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.3, 1.0)])
def test_bound_from_a_few_voxels_is_never_below_the_largest_distance(spacing):
    for share in (0.0003, 0.003, 0.05):
        seeds = sparse((40, 25, 30), share, seed=4)
        bound = nearest._farthest(torch.from_numpy(seeds)[None], spacing)
        assert bound >= distance_transform_edt(~seeds, sampling=spacing).max()
    assert nearest._farthest(torch.ones(1, 40, 25, 30, dtype=torch.bool), spacing) < 3 * sum(spacing)
    off_the_grid = torch.zeros(1, 40, 25, 30, dtype=torch.bool)
    off_the_grid[0, 1, 1, 1] = True
    assert nearest._farthest(off_the_grid, spacing) == math.inf


@pytest.mark.parametrize("extents, dtype", [((112, 112, 80), torch.int32), ((600, 600, 600), torch.int64)])
def test_integers_have_room_for_the_largest_distance_and_are_as_short_as_that_allows(extents, dtype):
    coding = Coding(extents, (1.0, 1.0, 1.0))
    assert coding.dtype == dtype
    assert coding.infinite_cost > sum((n - 1) ** 2 for n in extents)
    assert 2**coding.bits >= max(extents)
    assert 5 * coding.infinity < torch.iinfo(dtype).max


def test_a_line_that_needs_long_integers_has_scipys_distances():
    seeds = sparse((2, 2, 1100), 0.002, seed=3)
    seeds[0, 0, 0] = True
    assert Coding(seeds.shape, (1.0, 1.0, 1.0)).dtype == torch.int64
    distance, source = nearest_seed(torch.from_numpy(seeds)[None], (1, 1, 1), with_source=True)
    np.testing.assert_allclose(distance[0].numpy(), distance_transform_edt(~seeds), rtol=1e-6)
    np.testing.assert_allclose(lengths_to(source, (1, 1, 1))[0], distance_transform_edt(~seeds), rtol=1e-6)


def test_cheapest_source_attains_the_minimum_over_all_voxels():
    spacing, price = (1.0, 0.5, 2.0), np.random.default_rng(5).random((2, 5, 6, 4)) * 9
    source = cheapest_source(torch.from_numpy(price), spacing)
    points = np.stack(np.meshgrid(*map(np.arange, price.shape[1:]), indexing="ij"), -1).reshape(-1, 3) * spacing
    between = ((points[:, None] - points[None]) ** 2).sum(-1)
    for volume, found in zip(price.reshape(2, -1), source.reshape(2, -1).numpy()):
        cost = between + volume
        np.testing.assert_allclose(cost[np.arange(len(cost)), found], cost.min(1), rtol=1e-12)


@pytest.mark.parametrize("size", [(14, 10, 12), (4, 3, 3), (7, 5, 6), (9, 1, 11)])
def test_resizing_and_its_gradient_are_torchs_interpolation(size):
    x = torch.randn(2, 3, 7, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = F.interpolate(x, size=size, mode="trilinear", align_corners=False)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    result = resize(x, size)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)
    gradients = [torch.autograd.grad((weights * y).sum(), x)[0] for y in (result, expected)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
