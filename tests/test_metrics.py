"""Tests of scripts/evaluation/metrics.py: hand-computed values, medpy's definition in scipy, empty masks, errors."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, generate_binary_structure

from scripts.evaluation import METRIC_NAMES, segmentation_metrics

DISTANCES = ("hd95_mm", "asd_mm", "hd95_voxel", "asd_voxel")


def mask(*boxes, shape=(12, 12, 12)):
    """Return (H, W, D) bool, True in the boxes, each given as (start, stop) per axis."""
    volume = np.zeros(shape, dtype=bool)
    for box in boxes:
        volume[tuple(slice(*limits) for limits in box)] = True
    return volume


def voxel(h, w, d):
    return (h, h + 1), (w, w + 1), (d, d + 1)


def blob(seed, *, shape=(19, 23, 14), border=True):
    volume = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    volume = volume > np.quantile(volume, 0.6)
    if not border:
        volume[[0, -1]] = volume[:, [0, -1]] = volume[:, :, [0, -1]] = False
    return volume


def medpy_distances(a, b, spacing):
    """Return the distances from the surface of `a` to that of `b`, over the whole volume, in double precision."""
    cross = generate_binary_structure(3, 1)
    surface_a, surface_b = (m & ~binary_erosion(m, cross, border_value=0) for m in (a, b))
    return distance_transform_edt(~surface_b, sampling=spacing)[surface_a]


def test_cube_shifted_by_one_voxel_gives_the_hand_computed_values():
    prediction, reference = mask([(2, 6)] * 3), mask([(3, 7), (2, 6), (2, 6)])
    # 56 surface voxels each. Prediction → reference: 16 of the first face are one step along H away, 4 in the middle
    # of the last face one step along W or D, the others lie on the surface of the reference.
    assert segmentation_metrics(prediction, reference, spacing=(2.0, 1.0, 1.0)) == pytest.approx(
        {
            "dice": 2 * 48 / 128,
            "jaccard": 48 / 80,
            "hd95_mm": 2.0,
            "asd_mm": (16 * 2 + 4 * 1) / 56,
            "hd95_voxel": 1.0,
            "asd_voxel": 20 / 56,
        }
    )


def test_single_voxels_are_as_far_apart_as_the_spacing_of_each_axis_says():
    values = segmentation_metrics(mask(voxel(1, 1, 1)), mask(voxel(2, 3, 4)), spacing=(3.0, 2.0, 1.0))
    assert values["dice"] == values["jaccard"] == 0
    assert values["hd95_mm"] == values["asd_mm"] == pytest.approx(math.sqrt(3**2 + 4**2 + 3**2))
    assert values["hd95_voxel"] == values["asd_voxel"] == pytest.approx(math.sqrt(1 + 4 + 9))


def test_hd95_pools_both_directions_instead_of_taking_the_larger_percentile():
    point, line = mask(voxel(0, 5, 5)), mask([(0, 11), (5, 6), (5, 6)])
    # Pooled and sorted: 0, 0, 1, ..., 10. Position 0.95 · 11 = 10.45 lies between 9 and 10. The maximum of the two
    # directed percentiles would be 9.5.
    for pair in ((point, line), (line, point)):
        assert segmentation_metrics(*pair, spacing=(1, 1, 1))["hd95_voxel"] == pytest.approx(9.45)


def test_asd_is_directed_from_the_prediction_to_the_reference():
    one, two = mask(voxel(0, 5, 5)), mask(voxel(0, 5, 5), voxel(8, 5, 5))
    assert segmentation_metrics(one, two, spacing=(1, 1, 1))["asd_voxel"] == 0
    assert segmentation_metrics(two, one, spacing=(1, 1, 1))["asd_voxel"] == pytest.approx(4)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.625, 0.7, 2.5)])
@pytest.mark.parametrize(
    "prediction, reference",
    [
        (blob(1), blob(2)),
        (blob(3, border=False), blob(4, border=False)),
        (blob(5), blob(5, border=False)),
        (np.ones((9, 8, 7), bool), mask([(0, 3), (2, 5), (6, 7)], shape=(9, 8, 7))),
        (mask(voxel(0, 0, 0)), np.ones((12, 12, 12), bool)),
        (mask([(0, 12), (0, 12), (0, 1)]), mask([(3, 9), (3, 9), (3, 9)])),
    ],
    ids=[
        "blobs-at-the-border",
        "blobs-inside",
        "border-and-inside",
        "full-mask",
        "corner-voxel",
        "plane-at-the-border",
    ],
)
def test_values_equal_those_of_medpys_definition(prediction, reference, spacing):
    values = segmentation_metrics(prediction, reference, spacing=spacing)
    for unit, sampling in (("mm", spacing), ("voxel", (1, 1, 1))):
        forth = medpy_distances(prediction, reference, sampling)
        back = medpy_distances(reference, prediction, sampling)
        assert values[f"hd95_{unit}"] == pytest.approx(np.percentile(np.hstack((forth, back)), 95), rel=1e-6, abs=1e-6)
        assert values[f"asd_{unit}"] == pytest.approx(forth.mean(), rel=1e-6, abs=1e-6)
    both, either = (prediction & reference).sum(), (prediction | reference).sum()
    assert values["dice"] == pytest.approx(2 * both / (both + either))
    assert values["jaccard"] == pytest.approx(both / either)


@pytest.mark.parametrize(
    "one", [mask(voxel(4, 5, 6)), blob(6), np.ones((5, 5, 5), bool)], ids=["voxel", "blob", "full"]
)
def test_identical_masks_are_perfect(one):
    assert segmentation_metrics(one, one.copy(), spacing=(1, 2, 3)) == dict(zip(METRIC_NAMES, (1, 1, 0, 0, 0, 0)))


def test_two_empty_masks_agree_perfectly():
    assert segmentation_metrics(mask(), mask(), spacing=(1, 1, 1)) == dict(zip(METRIC_NAMES, (1, 1, 0, 0, 0, 0)))


@pytest.mark.parametrize("pair", [(mask(), blob(7, shape=(12, 12, 12))), (mask(voxel(1, 1, 1)), mask())])
def test_exactly_one_empty_mask_gives_no_overlap_and_nan_distances(pair):
    values = segmentation_metrics(*pair, spacing=(1, 1, 1))
    assert values["dice"] == values["jaccard"] == 0
    assert all(math.isnan(values[name]) for name in DISTANCES)


def test_tensors_give_the_same_python_floats_as_arrays_and_stay_unchanged():
    arrays = blob(8), blob(9)
    tensors = [torch.from_numpy(array.copy()) for array in arrays]
    values = segmentation_metrics(*tensors, spacing=torch.tensor([0.5, 1.0, 2.0]))
    assert values == segmentation_metrics(*arrays, spacing=(0.5, 1.0, 2.0))
    assert tuple(values) == METRIC_NAMES == ("dice", "jaccard", "hd95_mm", "asd_mm", "hd95_voxel", "asd_voxel")
    assert all(type(value) is float for value in values.values())
    assert all(np.array_equal(tensor.numpy(), array) for tensor, array in zip(tensors, arrays))


def test_different_shapes_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"same shape, got \(4, 4, 4\) and \(4, 4, 5\): bring the prediction back"):
        segmentation_metrics(np.zeros((4, 4, 4), bool), np.zeros((4, 4, 5), bool), spacing=(1, 1, 1))


def test_a_channel_axis_is_refused_with_the_shape():
    with pytest.raises(ValueError, match=r"\(H, W, D\), got \(1, 4, 4, 4\): pass one case and one class"):
        segmentation_metrics(np.zeros((1, 4, 4, 4), bool), np.zeros((1, 4, 4, 4), bool), spacing=(1, 1, 1))


def test_labels_that_are_not_boolean_are_refused_with_the_dtype():
    with pytest.raises(TypeError, match="reference must be boolean, got int64: select the class first"):
        segmentation_metrics(np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), np.int64), spacing=(1, 1, 1))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -1, 1), (1, math.nan, 1), (1, math.inf, 1)])
def test_unusable_spacing_is_refused_even_for_empty_masks(spacing):
    with pytest.raises(ValueError, match=r"spacing must be three positive numbers in mm, got \(1.0, "):
        segmentation_metrics(mask(), mask(), spacing=spacing)
