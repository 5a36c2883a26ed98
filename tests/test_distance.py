"""Tests of scripts/distance: scipy and float64 references, hand-derived gradients, degenerate masks, errors."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import merged
from monai.data import MetaTensor
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, zoom

from scripts.distance import (
    CascadedDistance,
    DistanceToSegmentation,
    ExactDistance,
    SegmentationToDistance,
)
from scripts.distance.signed_distance import inner_boundary, straight_through

TRANSFORMS = {"cascade": CascadedDistance, "exact": ExactDistance}
each_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def field(seed, shape, sigma=2.0):
    """Return a smooth random float64 field in [0, 1] whose median is about a half."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return 1 / (1 + np.exp(-3 * (noise - np.median(noise)) / noise.std()))


def blob(seed, shape=(13, 10, 16)):
    volume = field(seed, shape)
    return volume > np.quantile(volume, 0.6)


def one_voxel(shape=(7, 9, 6)):
    volume = np.zeros(shape, dtype=bool)
    volume[3, 4, 2] = True
    return volume


def corner_voxel(shape=(6, 5, 7)):
    volume = np.zeros(shape, dtype=bool)
    volume[0, 0, 6] = True
    return volume


MASKS = {
    "blob": blob(0),
    "other-blob": blob(1, (9, 14, 8)),
    "noise": np.random.default_rng(2).random((8, 9, 7)) > 0.5,
    "one-voxel": one_voxel(),
    "hole-of-one-voxel": ~one_voxel(),
    "corner-voxel": corner_voxel(),
    "all-but-a-corner": ~corner_voxel(),
    "flat": blob(3, (1, 12, 9)),
}
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def tensor(*volumes, dtype=torch.float32):
    """Return (N, 1, H, W, D) of the given volumes."""
    return torch.from_numpy(np.stack(volumes)[:, None]).to(dtype)


def leaf(values, dtype=torch.float32):
    """Return a line of voxels (1, 1, 1, 1, n) that records gradients."""
    return torch.tensor(values, dtype=dtype).reshape(1, 1, 1, 1, -1).requires_grad_()


def weighted_gradient(output, weights, of):
    """Return d sum(weights * output) / d of, flat."""
    (gradient,) = torch.autograd.grad((output.flatten() * torch.tensor(weights, dtype=output.dtype)).sum(), of)
    return gradient.flatten()


def euclidean_map(mask):
    """Return the signed distance map of DBiSL Eq. 2-5 from scipy's transform: min-max by hand, negative inside."""
    outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
    return (outside - outside.min()) / np.ptp(outside) - (inside - inside.min()) / np.ptp(inside)


# Cascade


def cascade_reference(seeds, kernel_size, h):
    """The cascade of methods.md, section 1, literally, in double precision."""
    rho = kernel_size // 2
    offsets = list(itertools.product(range(-rho, rho + 1), repeat=3))
    b, distance = seeds.astype(np.float64), np.zeros(seeds.shape)
    for i in range(math.ceil(max(seeds.shape) / rho)):
        padded = np.pad(b, rho, mode="edge")
        c = np.zeros(seeds.shape)
        for u in offsets:
            shifted = padded[tuple(slice(rho + o, rho + o + n) for o, n in zip(u, seeds.shape))]
            c += math.exp(-math.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2) / h) * shifted
        d = np.array([-h * math.log(value) if value > 0 else 0.0 for value in c.flat]).reshape(c.shape)
        m = d > 0
        if not m.any():
            break
        distance += m * (i * rho + d)
        b = np.where(m, 1.0, b)
    return distance


@pytest.mark.parametrize("kernel_size, h", [(3, 0.35), (5, 0.35), (7, 0.35), (3, 0.2), (5, 0.6)])
@each_mask
def test_cascade_equals_the_literal_reference_in_double_precision(mask, kernel_size, h):
    distance = CascadedDistance(kernel_size, h)(tensor(mask, ~mask))
    assert distance.dtype == torch.float32
    for result, seeds in zip(distance[:, 0].numpy(), (mask, ~mask)):
        np.testing.assert_allclose(result, cascade_reference(seeds, kernel_size, h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel_size, h, offset", [(3, 0.5, (1, -1, 0)), (5, 0.35, (-2, 1, 2)), (7, 1.0, (3, 0, -3))])
def test_kernel_is_the_exponential_of_the_negative_length_over_h(kernel_size, h, offset):
    kernel = CascadedDistance(kernel_size, h).kernel
    rho = kernel_size // 2
    assert kernel.shape == (1, 1, kernel_size, kernel_size, kernel_size)
    assert kernel[0, 0, rho, rho, rho] == 1
    value = kernel[(0, 0, *(rho + o for o in offset))].item()
    assert value == pytest.approx(math.exp(-math.sqrt(sum(o * o for o in offset)) / h), rel=1e-6)


def test_cascade_around_one_seed_is_euclidean_within_the_kernels_radius():
    seeds = np.zeros((5, 5, 5), dtype=bool)
    seeds[2, 2, 2] = True
    distance = CascadedDistance(kernel_size=5)(tensor(seeds))[0, 0].numpy()
    np.testing.assert_allclose(distance, distance_transform_edt(~seeds), atol=1e-5)


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@each_mask
def test_sign_of_the_cascades_map_is_exact_at_the_default_h(mask, kernel_size):
    signed = SegmentationToDistance(CascadedDistance(kernel_size), factor=1)(tensor(mask))[0, 0].numpy()
    assert np.array_equal(np.sign(signed), np.sign(distance_transform_edt(~mask) - distance_transform_edt(mask)))


@pytest.mark.parametrize("kernel_size, h", [(3, 0.42), (5, 0.40), (7, 0.40)])
def test_a_hole_of_one_voxel_closes_at_the_h_that_the_docstring_warns_of(kernel_size, h):
    assert CascadedDistance(kernel_size, h)(tensor(~one_voxel())).abs().max() == 0
    assert CascadedDistance(kernel_size, 0.35)(tensor(~one_voxel())).max() > 0


@pytest.mark.parametrize("seed", [4, 5])
def test_cascades_map_of_a_blob_correlates_with_the_euclidean_one_without_being_it(seed):
    mask = blob(seed, (20, 18, 22))
    signed = SegmentationToDistance(CascadedDistance(), factor=1)(tensor(mask))[0, 0].numpy()
    correlation = np.corrcoef(signed.ravel(), euclidean_map(mask).ravel())[0, 1]
    assert 0.9 < correlation < 0.9999


def test_cascade_sends_the_gradient_of_each_ring_to_the_voxels_around_it():
    # By hand, on a line whose other two axes are padded by replication. With K_n = exp(-sqrt(n) / h), a voxel sees
    # itself with s0 = 1 + 4 K_1 + 4 K_2 and each neighbour with s1 = K_1 + 4 K_2 + 4 K_3. Step 0 reaches voxel 1 with
    # c = s0 x1 + s1 (x0 + x2); it is a constant 1 afterwards. Step 1 reaches voxel 2, whose right neighbour is its
    # own padding, with c = s1 + (s0 + s1) x2.
    h, (w1, w2) = 0.35, (2.0, 5.0)
    k1, k2, k3 = (math.exp(-math.sqrt(n) / h) for n in (1, 2, 3))
    s0, s1 = 1 + 4 * k1 + 4 * k2, k1 + 4 * k2 + 4 * k3
    seeds = leaf([1.0, 0.0, 0.0])
    distance = CascadedDistance(3, h)(seeds)
    assert distance.flatten().tolist() == pytest.approx([0, -h * math.log(s1), 1 - h * math.log(s1)], rel=1e-5)
    expected = [-h * w1, -h * w1 * s0 / s1, -h * w1 - h * w2 * (s0 + s1) / s1]
    gradient = weighted_gradient(distance, [7.0, w1, w2], seeds)
    assert gradient.tolist() == pytest.approx(expected, rel=1e-4)


def test_every_voxel_around_one_seed_sends_it_minus_h_through_the_cascade():
    # d/dx of -h log(K x) at x = 1, for each of the 26 neighbours.
    seeds = torch.zeros(1, 1, 3, 3, 3)
    seeds[0, 0, 1, 1, 1] = 1
    seeds.requires_grad_()
    CascadedDistance(3, 0.35)(seeds).sum().backward()
    assert seeds.grad[0, 0, 1, 1, 1].item() == pytest.approx(-26 * 0.35, rel=1e-4)


@pytest.mark.parametrize("kernel_size, h", [(3, 0.35), (5, 0.35), (7, 0.35), (3, 0.2), (3, 0.6), (5, 0.8)])
@each_mask
def test_gradient_of_the_cascade_is_that_of_autograd_through_its_literal_steps(mask, kernel_size, h):
    rho = kernel_size // 2
    seeds = tensor(mask, ~mask, dtype=torch.float64).requires_grad_()
    weights = torch.randn(seeds.shape, generator=torch.Generator().manual_seed(30), dtype=torch.float64)
    axis = torch.arange(-rho, rho + 1, dtype=torch.float64)
    kernel = torch.exp(-torch.cartesian_prod(axis, axis, axis).norm(dim=1) / h).reshape(1, 1, *[kernel_size] * 3)
    b, distance = seeds, torch.zeros_like(seeds)
    for i in range(math.ceil(max(mask.shape) / rho)):
        c = F.conv3d(F.pad(b, (rho,) * 6, mode="replicate"), kernel)
        d = -h * torch.log(torch.where(c > 0, c, 1.0))
        m = d > 1e-9
        distance = distance + torch.where(m, i * rho + d, 0.0)
        b = torch.where(m, 1.0, b)
    (expected,) = torch.autograd.grad((weights * distance).sum(), seeds)
    given = tensor(mask, ~mask).requires_grad_()
    (weights.float() * CascadedDistance(kernel_size, h)(given)).sum().backward()
    np.testing.assert_allclose(given.grad.numpy(), expected.numpy(), rtol=1e-3, atol=1e-4 * expected.abs().max().item())


# Exact transform


@pytest.mark.parametrize("spacing", [None, (1, 1, 1), (0.625, 0.7, 2.5), (3, 1, 2)])
@each_mask
def test_distance_equals_scipys_in_the_unit_of_the_spacing(mask, spacing):
    distance = ExactDistance(spacing)(tensor(mask, ~mask))
    assert distance.dtype == torch.float32
    for result, seeds in zip(distance[:, 0].numpy(), (mask, ~mask)):
        expected = distance_transform_edt(~seeds, sampling=(1, 1, 1) if spacing is None else spacing)
        np.testing.assert_allclose(result, expected, atol=1e-4)


def test_distance_along_an_axis_of_hundreds_of_voxels_equals_scipys():
    mask = np.random.default_rng(6).random((9, 7, 300)) > 0.997
    np.testing.assert_allclose(ExactDistance()(tensor(mask))[0, 0].numpy(), distance_transform_edt(~mask), atol=1e-4)


@each_transform
def test_volumes_of_a_batch_do_not_see_each_other(transform):
    volumes = [blob(seed, (9, 8, 7)) for seed in range(3)] + [np.zeros((9, 8, 7), bool), np.ones((9, 8, 7), bool)]
    together = transform()(tensor(*volumes))
    for i, volume in enumerate(volumes):
        torch.testing.assert_close(together[i : i + 1], transform()(tensor(volume)))


@each_transform
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_distance_is_zero_everywhere_without_seeds_and_with_nothing_else(transform, value):
    seeds = torch.full((1, 1, 4, 5, 6), value, requires_grad=True)
    distance = transform()(seeds)
    assert torch.all(distance == 0)
    distance.sum().backward()
    assert torch.all(seeds.grad == 0)


@pytest.mark.parametrize(
    "seeds, expected",
    [
        # One seed: all that is not a seed sends its weight there.
        ([0, 0, 1, 0, 0, 0, 0], [0, 0, -(1 + 2 + 8 + 16 + 32 + 64), 0, 0, 0, 0]),
        # Two seeds: voxels 1 and 2 are nearer to voxel 0; 3, 4 and 6 to voxel 5.
        ([1, 0, 0, 0, 0, 1, 0], [-(2 + 4), 0, 0, 0, 0, -(8 + 16 + 64), 0]),
        # Only seeds, or none: nothing flows.
        ([1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]),
        ([0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("spacing, step", [(None, 1.0), ((1.0, 2.0, 6.0), 3.0)])
def test_exact_distance_sends_minus_one_voxel_per_weight_to_the_nearest_seed(seeds, expected, spacing, step):
    seeds = leaf(seeds)
    gradient = weighted_gradient(ExactDistance(spacing)(seeds), [1, 2, 4, 8, 16, 32, 64], seeds)
    assert gradient.tolist() == pytest.approx([step * value for value in expected])


@each_mask
def test_gradient_of_the_exact_distance_arrives_at_scipys_nearest_seeds(mask):
    # A weight on each voxel in turn would be slow; one that decreases steeply tells all of them apart, up to ties.
    weights = np.random.default_rng(7).random(mask.shape)
    distance = distance_transform_edt(~mask)
    seeds = tensor(mask).requires_grad_()
    (ExactDistance()(seeds) * tensor(weights)).sum().backward()
    gradient = seeds.grad[0, 0].numpy()
    assert np.all(gradient[~mask] == 0)
    assert gradient.sum() == pytest.approx(-weights[~mask].sum(), rel=1e-4)
    for seed in np.argwhere(mask):
        length = np.sqrt(sum((axis - s) ** 2 for axis, s in zip(np.indices(mask.shape), seed)))
        assert -gradient[tuple(seed)] <= weights[~mask & (np.abs(length - distance) < 1e-9)].sum() + 1e-4


# Distance to segmentation


@pytest.mark.parametrize("k, r", [(1500, 0.0), (1500, 1e-3), (1500, -2e-3), (50, 0.05), (50, -0.01), (1, 1), (1, -1)])
def test_segmentation_is_the_sigmoid_of_minus_k_times_the_distance(k, r):
    distance = torch.tensor([r])
    assert DistanceToSegmentation(k)(distance).item() == pytest.approx(1 / (1 + math.exp(k * r)), rel=1e-5)


def test_steepness_is_the_papers_unless_given():
    assert DistanceToSegmentation()(torch.tensor(-0.001)).item() == pytest.approx(1 / (1 + math.exp(-1.5)), rel=1e-5)


def test_gradient_of_the_segmentation_is_that_of_finite_differences():
    # The operator works in float32, hence the wide step; k is moderate, so that its curvature does not matter.
    r = torch.linspace(-0.9, 0.9, 12, dtype=torch.float64).reshape(1, 1, 2, 3, 2).requires_grad_()
    operator = DistanceToSegmentation(5)
    assert torch.autograd.gradcheck(lambda x: operator(x).double(), r, eps=1e-2, atol=1e-3, rtol=1e-3)


def test_gradient_at_the_boundary_is_minus_a_quarter_of_k():
    r = torch.zeros(1, requires_grad=True)
    DistanceToSegmentation(1500)(r).backward()
    assert r.grad.item() == pytest.approx(-1500 / 4)


def test_segmentation_of_a_bfloat16_map_is_float32():
    distance = torch.linspace(-1, 1, 9).bfloat16()
    result = DistanceToSegmentation(20)(distance)
    assert result.dtype == torch.float32
    assert torch.equal(result, DistanceToSegmentation(20)(distance.float()))


@each_transform
@each_mask
def test_both_ways_give_the_mask_back(mask, transform):
    signed = SegmentationToDistance(transform(), factor=1)(tensor(mask))
    assert np.array_equal(DistanceToSegmentation()(signed)[0, 0].numpy() > 0.5, mask)


# Straight-through binarisation


def test_straight_through_is_exactly_binary_and_above_one_half_and_passes_the_gradient_unchanged():
    p = torch.rand(100_000, generator=torch.Generator().manual_seed(11))
    p = torch.cat([p, torch.tensor([0.0, 1.0, 0.5, 1e-8, 1 - 1e-7, 0.5 + 1e-7, 0.5 - 1e-7])]).requires_grad_()
    result = straight_through(p)
    assert result.dtype == p.dtype
    assert result.unique().tolist() == [0, 1]
    assert (1 - result).unique().tolist() == [0, 1]
    assert torch.equal(result == 1, p > 0.5)
    weights = torch.randn(len(p), generator=torch.Generator().manual_seed(12))
    (result * weights).sum().backward()
    assert torch.equal(p.grad, weights)


# Segmentation to distance


@each_mask
def test_map_of_a_label_is_scipys_signed_map_with_min_max_by_hand(mask):
    signed, valid = SegmentationToDistance(ExactDistance(), factor=1).with_validity(tensor(mask))
    np.testing.assert_allclose(signed[0, 0].numpy(), euclidean_map(mask), atol=1e-5)
    assert valid.tolist() == [[True]]


@each_transform
@pytest.mark.parametrize("factor", [1, 0.5])
def test_map_of_a_label_from_monais_pipeline_is_that_of_its_values(transform, factor):
    mask = tensor(blob(12))
    operator = SegmentationToDistance(transform(), factor=factor)
    assert torch.equal(operator(MetaTensor(mask)), operator(mask))


def test_map_in_the_unit_of_an_anisotropic_spacing_is_scipys():
    mask, spacing = blob(12), (1.0, 0.5, 3.0)
    outside, inside = (distance_transform_edt(m, sampling=spacing) for m in (~mask, mask))
    signed = SegmentationToDistance(ExactDistance(spacing), factor=1)(tensor(mask))[0, 0].numpy()
    np.testing.assert_allclose(signed, outside / outside.max() - inside / inside.max(), atol=1e-5)


def test_config_id_makes_reference_maps_of_training_in_millimetres():
    """`distance_spacing` in every method that has a map."""
    mask, spacing = torch.zeros(1, 1, 8, 8, 8), [1.0, 1.0, 4.0]
    mask[..., 2:5, 1:6, 3:6] = 1
    whole = mask[0, 0].numpy() > 0
    outside, inside = (distance_transform_edt(m, sampling=spacing) for m in (~whole, whole))
    expected = torch.tensor(outside / outside.max() - inside / inside.max(), dtype=torch.float32)
    for method in ("dbisl", "dtc", "dtml", "sassnet"):
        parser = merged("configs/train.json", f"configs/methods/{method}.json")
        parser.update({"distance_spacing": spacing})
        parser["segmentation_to_distance"]["zero_inner_boundary"] = False
        made = parser.get_parsed_content("segmentation_to_distance")(mask)
        torch.testing.assert_close(made, expected[None, None])


@each_transform
@each_mask
def test_map_runs_from_minus_one_inside_to_plus_one_outside(mask, transform):
    signed = SegmentationToDistance(transform(), factor=1)(tensor(mask))[0, 0].numpy()
    assert signed.dtype == np.float32
    assert signed.min() == -1
    assert signed.max() == 1
    assert np.all(signed[mask] < 0)
    assert np.all(signed[~mask] > 0)


@each_transform
def test_map_of_probabilities_is_that_of_their_mask(transform):
    probability = field(13, (8, 9, 10))
    operator = SegmentationToDistance(transform(), factor=1)
    assert torch.equal(operator(tensor(probability)), operator(tensor(probability > 0.5)))


def doubled(volume):
    """Return a volume at twice the resolution by scipy's linear interpolation between the centres of the voxels."""
    return zoom(volume, 2, order=1, mode="nearest", grid_mode=True)


def halves(mask):
    """Return scipy's distances outside and inside of a mask."""
    return distance_transform_edt(~mask), distance_transform_edt(mask)


@pytest.mark.parametrize("subtract_first", [True, False])
@pytest.mark.parametrize("shape", [(8, 12, 10), (10, 4, 2)])
def test_half_resolution_means_average_binarise_measure_interpolate_and_normalise(shape, subtract_first):
    p = field(15, shape, sigma=0.8)
    outside, inside = halves(p.reshape([n for e in shape for n in (e // 2, 2)]).mean((1, 3, 5)) > 0.5)
    if subtract_first:
        difference = doubled(outside - inside)
        outside, inside = difference.clip(min=0), (-difference).clip(min=0)
    else:
        outside, inside = doubled(outside), doubled(inside)
    operator = SegmentationToDistance(ExactDistance(), factor=0.5, subtract_first=subtract_first)
    signed = operator(tensor(p))[0, 0].numpy()
    np.testing.assert_allclose(signed, outside / outside.max() - inside / inside.max(), atol=1e-5)


def test_zero_of_a_map_at_half_resolution_is_the_boundary_of_the_mask():
    """A ball far from the patch's edges, whose two halves have very different units."""
    ball = np.linalg.norm(np.indices((40, 40, 40)) - np.array([19.5] * 3).reshape(3, 1, 1, 1), axis=0) < 8
    volumes = {}
    for first in (True, False):
        signed = SegmentationToDistance(ExactDistance(), factor=0.5, subtract_first=first)(tensor(ball))[0, 0].numpy()
        volumes[first] = (signed < 0).sum() / ball.sum()
    assert volumes[True] == pytest.approx(1, abs=0.1)
    assert volumes[False] > 1.2


@each_transform
@pytest.mark.parametrize("subtract_first", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_gradient_at_half_resolution_is_that_of_each_step(detach, subtract_first, transform):
    """By autograd from the mask on; the mask hands it on to the eight voxels that it is the mean of."""
    p, transform = tensor(field(33, (8, 6, 10))).requires_grad_(), transform()
    weights = torch.randn(p.shape, generator=torch.Generator().manual_seed(34))
    (
        SegmentationToDistance(transform, factor=0.5, subtract_first=subtract_first, detach_extrema=detach)(p) * weights
    ).sum().backward()
    mask = (F.avg_pool3d(p.detach(), 2) > 0.5).float().requires_grad_()
    parts = [transform(mask), transform(1 - mask)]
    if subtract_first:
        difference = F.interpolate(parts[0] - parts[1], scale_factor=2, mode="trilinear")
        parts = [difference.relu(), (-difference).relu()]
    else:
        parts = [F.interpolate(part, scale_factor=2, mode="trilinear") for part in parts]
    outside, inside = (part / (part.max().detach() if detach else part.max()) for part in parts)
    (expected,) = torch.autograd.grad(((outside - inside) * weights).sum(), mask)
    expected = expected.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4) / 8
    torch.testing.assert_close(p.grad, expected, atol=1e-5, rtol=1e-4)


@each_transform
@pytest.mark.parametrize("factor", [1, 0.5, 0.3, 0.1])
@pytest.mark.parametrize("shape", [(9, 7, 11), (16, 12, 5), (3, 1, 8)])
def test_map_has_the_shape_of_the_input_and_stays_in_range_at_every_factor(shape, factor, transform):
    p = torch.from_numpy(np.stack([[field(16 + i, shape) for i in range(3)]] * 2))
    signed, valid = SegmentationToDistance(transform(), factor=factor).with_validity(p)
    assert signed.shape == p.shape
    assert signed.dtype == torch.float32
    assert -1 <= signed.min() <= signed.max() <= 1
    assert valid.shape == (2, 3)
    assert valid.dtype == torch.bool


@pytest.mark.parametrize("factor, least", [(0.5, 0.99), (0.3, 0.98), (0.1, 0.9)])
def test_coarse_map_of_a_ball_is_close_to_the_fine_one(factor, least):
    ball = np.linalg.norm(np.indices((30, 40, 50)) - np.array([15, 18, 28]).reshape(3, 1, 1, 1), axis=0) < 11
    coarse, fine = (SegmentationToDistance(ExactDistance(), factor=f)(tensor(ball)).flatten() for f in (factor, 1))
    assert np.corrcoef(coarse, fine)[0, 1] > least


@each_transform
@pytest.mark.parametrize("factor", [1, 0.5])
def test_every_sample_and_class_has_the_map_that_it_has_alone(transform, factor):
    shape = (8, 6, 10)
    volumes = [blob(20, shape), np.zeros(shape), np.ones(shape), one_voxel(shape), field(21, shape), ~blob(22, shape)]
    p = tensor(*volumes).reshape(2, 3, *shape)
    operator = SegmentationToDistance(transform(), factor=factor)
    signed, valid = operator.with_validity(p)
    for i, c in itertools.product(range(2), range(3)):
        alone, alone_valid = operator.with_validity(p[i : i + 1, c : c + 1])
        torch.testing.assert_close(signed[i : i + 1, c : c + 1], alone)
        assert valid[i, c] == alone_valid[0, 0]


@each_transform
@pytest.mark.parametrize("factor", [1, 0.5, 0.3])
def test_empty_is_plus_one_and_full_minus_one_and_neither_is_valid(transform, factor):
    p = torch.zeros(2, 3, 6, 5, 8)
    p[0, 1] = 1
    p[1, 0] = 0.4
    p[1, 1] = 0.6
    p[1, 2, :3] = 1
    signed, valid = SegmentationToDistance(transform(), factor=factor).with_validity(p)
    assert valid.tolist() == [[False, False, False], [False, False, True]]
    assert torch.all(signed[0, [0, 2]] == 1)
    assert torch.all(signed[0, 1] == -1)
    assert torch.all(signed[1, 0] == 1)
    assert torch.all(signed[1, 1] == -1)


# The level set of DTC and DTML: zero on the inner boundary


@each_mask
def test_inner_boundary_is_what_an_erosion_by_faces_takes_away(mask):
    taken = mask & ~binary_erosion(mask, border_value=1)
    assert np.array_equal(inner_boundary(tensor(mask) > 0)[0, 0].numpy(), taken)


@each_mask
def test_map_with_a_zero_inner_boundary_differs_from_the_other_there_alone(mask):
    expected = euclidean_map(mask)
    expected[mask & ~binary_erosion(mask, border_value=1)] = 0
    signed = SegmentationToDistance(ExactDistance(), factor=1, zero_inner_boundary=True)(tensor(mask))[0, 0]
    np.testing.assert_allclose(signed.numpy(), expected, atol=1e-5)
    assert (signed == 0).any()


@each_transform
@pytest.mark.parametrize("factor", [1, 0.5])
def test_zero_inner_boundary_leaves_empty_at_plus_one_and_full_at_minus_one(transform, factor):
    p = torch.cat([torch.zeros(1, 1, 6, 5, 8), torch.ones(1, 1, 6, 5, 8)], dim=1)
    signed = SegmentationToDistance(transform(), factor=factor, zero_inner_boundary=True)(p)
    assert torch.all(signed[0, 0] == 1)
    assert torch.all(signed[0, 1] == -1)


@each_transform
def test_validity_is_judged_at_the_maps_resolution(transform):
    p = tensor(one_voxel((8, 8, 8)), ~one_voxel((8, 8, 8)))
    assert SegmentationToDistance(transform(), factor=1).with_validity(p)[1].tolist() == [[True], [True]]
    signed, valid = SegmentationToDistance(transform(), factor=0.5).with_validity(p)
    assert valid.tolist() == [[False], [False]]
    assert torch.all(signed[0] == 1)
    assert torch.all(signed[1] == -1)


SMALL = (6, 7, 8)
PROBABILITIES = {
    "empty": np.zeros(SMALL),
    "full": np.ones(SMALL),
    "one-voxel": one_voxel(SMALL),
    "hole-of-one-voxel": ~one_voxel(SMALL),
    "blob": blob(23, SMALL),
    "smooth": field(24, SMALL, sigma=1),
    "random": np.random.default_rng(25).random(SMALL),
    "nearly-empty": np.full(SMALL, 1e-6),
    "a-half": np.full(SMALL, 0.5),
}


@each_transform
@pytest.mark.parametrize("detach_extrema", [True, False])
@pytest.mark.parametrize("factor", [1, 0.5])
@pytest.mark.parametrize("probability", PROBABILITIES.values(), ids=PROBABILITIES)
def test_gradient_is_finite_and_zero_where_the_map_is_not_valid(probability, factor, detach_extrema, transform):
    p = tensor(probability).requires_grad_()
    operator = SegmentationToDistance(transform(), factor=factor, detach_extrema=detach_extrema)
    signed, valid = operator.with_validity(p)
    weights = torch.rand(signed.shape, generator=torch.Generator().manual_seed(26))
    (signed * weights).sum().backward()
    assert p.grad.isfinite().all()
    if not valid:
        assert torch.all(p.grad == 0)
    else:
        assert p.grad.abs().max() > 0


@pytest.mark.parametrize(
    "detach_extrema, expected",
    [
        # R = (-1, 1/3, 2/3, 1). Detached: the three voxels outside send -1/3 to seed 0, the one inside +1 to the
        # background seed 1, of which p_1 is the complement.
        (True, [-(2 + 4 + 8) / 3, -1, 0, 0]),
        # Not detached: (w1 + 2 w2 + 3 w3) / 9 of it comes back through the maximum d_3 = 3; the only voxel inside is
        # always at -1, whatever its distance.
        (False, [-(2 + 4 + 8) / 3 + (2 + 2 * 4 + 3 * 8) / 9, 0, 0, 0]),
    ],
)
def test_detached_extrema_change_the_gradient_as_derived_by_hand(detach_extrema, expected):
    p = leaf([1.0, 0.0, 0.0, 0.0])
    signed = SegmentationToDistance(ExactDistance(), factor=1, detach_extrema=detach_extrema)(p)
    assert signed.flatten().tolist() == pytest.approx([-1, 1 / 3, 2 / 3, 1])
    gradient = weighted_gradient(signed, [1.0, 2.0, 4.0, 8.0], p)
    assert gradient.tolist() == pytest.approx(expected, abs=1e-6)


@each_transform
def test_detached_extrema_leave_the_map_as_it_is(transform):
    p = tensor(field(27, (8, 7, 9)))
    maps = [SegmentationToDistance(transform(), detach_extrema=detach)(p) for detach in (True, False)]
    assert torch.equal(*maps)


@each_transform
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factor", [1, 0.5])
def test_map_under_bfloat16_autocast_is_the_float32_one_of_the_same_input(factor, dtype, transform):
    p = tensor(field(28, (8, 6, 10))).to(dtype)
    transform = transform()
    coarse = p.float() if factor == 1 else F.avg_pool3d(p.float(), 2)
    coarse = (coarse > 0.5).float()
    difference = F.interpolate(transform(coarse) - transform(1 - coarse), size=p.shape[2:], mode="trilinear")
    outside, inside = difference.clamp(min=0), (-difference).clamp(min=0)
    expected = outside / outside.max() - inside / inside.max()
    with torch.autocast("cpu", torch.bfloat16):
        signed = SegmentationToDistance(transform, factor=factor)(p)
    assert signed.dtype == torch.float32
    torch.testing.assert_close(signed, expected, atol=1e-5, rtol=1e-5)


@each_transform
def test_gradient_of_the_map_is_the_same_inside_of_autocast(transform):
    # MONAI's trainer fires LOSS_COMPLETED, and with it the handler of the gradient norms, inside of its autocast.
    p = tensor(field(31, (9, 8, 7))).requires_grad_()
    weights = torch.randn(p.shape, generator=torch.Generator().manual_seed(32))
    operator = SegmentationToDistance(transform(), factor=1)
    (expected,) = torch.autograd.grad((weights * operator(p)).sum(), p)
    with torch.autocast("cpu", torch.bfloat16):
        (gradient,) = torch.autograd.grad((weights * operator(p)).sum(), p)
    torch.testing.assert_close(gradient, expected)


# Errors


@pytest.mark.parametrize("kernel_size", [4, 1, 0, -3])
def test_kernel_sizes_without_a_centre_or_neighbours_are_refused(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size is {kernel_size}"):
        CascadedDistance(kernel_size)


@pytest.mark.parametrize("h", [0, -0.35])
def test_decay_that_is_not_positive_is_refused(h):
    with pytest.raises(ValueError, match=f"h is {h}; the decay of the kernel must be positive"):
        CascadedDistance(3, h)


@pytest.mark.parametrize("k", [0, -1500])
def test_steepness_that_is_not_positive_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; the steepness must be positive"):
        DistanceToSegmentation(k)


@pytest.mark.parametrize("factor", [0, -0.5, 1.01])
def test_factor_outside_of_zero_to_one_is_refused(factor):
    with pytest.raises(ValueError, match=rf"factor is {factor}"):
        SegmentationToDistance(ExactDistance(), factor=factor)
