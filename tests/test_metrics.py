"""Tests of scripts/evaluation/metrics.py: hand-computed values, medpy, scipy and MONAI, empty masks, errors."""

import math

import nibabel
import numpy as np
import pytest
import torch
from conftest import real_data
from medpy.metric import binary
from monai.metrics import compute_surface_dice
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
            # Within 1 mm are all but the 16 of either side that are 2 mm away.
            "surface_dice": (56 + 56 - 16 - 16) / 112,
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


PAIRS = {
    "blobs-at-the-border": (blob(1), blob(2)),
    "blobs-inside": (blob(3, border=False), blob(4, border=False)),
    "border-and-inside": (blob(5), blob(5, border=False)),
    "full-mask": (np.ones((9, 8, 7), bool), mask([(0, 3), (2, 5), (6, 7)], shape=(9, 8, 7))),
    "corner-voxel": (mask(voxel(0, 0, 0)), np.ones((12, 12, 12), bool)),
    "plane-at-the-border": (mask([(0, 12), (0, 12), (0, 1)]), mask([(3, 9), (3, 9), (3, 9)])),
    "far-apart": (mask(voxel(0, 0, 0), shape=(90, 80, 70)), mask(voxel(88, 79, 66), shape=(90, 80, 70))),
}


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.625, 0.7, 2.5)])
@pytest.mark.parametrize("prediction, reference", PAIRS.values(), ids=PAIRS)
def test_values_equal_those_of_the_definition_in_scipy(prediction, reference, spacing):
    values = segmentation_metrics(prediction, reference, spacing=spacing, tolerance=2.0)
    for unit, sampling in (("mm", spacing), ("voxel", (1, 1, 1))):
        forth = medpy_distances(prediction, reference, sampling)
        back = medpy_distances(reference, prediction, sampling)
        both = np.hstack((forth, back))
        assert values[f"hd95_{unit}"] == pytest.approx(np.percentile(both, 95), rel=0, abs=1e-9)
        assert values[f"asd_{unit}"] == pytest.approx(forth.mean(), rel=0, abs=1e-9)
        if unit == "mm":
            assert values["surface_dice"] == pytest.approx((both <= 2.0).mean())
    both, either = (prediction & reference).sum(), (prediction | reference).sum()
    assert values["dice"] == pytest.approx(2 * both / (both + either))
    assert values["jaccard"] == pytest.approx(both / either)


def assert_equal_to_medpy(prediction, reference, spacing):
    values = segmentation_metrics(prediction, reference, spacing=spacing)
    for unit, voxelspacing in (("voxel", None), ("mm", spacing)):
        hd95 = binary.hd95(prediction, reference, voxelspacing=voxelspacing)
        assert values[f"hd95_{unit}"] == pytest.approx(hd95, rel=0, abs=1e-6)
        assert values[f"asd_{unit}"] == pytest.approx(
            binary.asd(prediction, reference, voxelspacing=voxelspacing), rel=0, abs=1e-6
        )
    assert values["dice"] == pytest.approx(binary.dc(prediction, reference), rel=0, abs=1e-6)
    assert values["jaccard"] == pytest.approx(binary.jc(prediction, reference), rel=0, abs=1e-6)


@pytest.mark.parametrize("prediction, reference", PAIRS.values(), ids=PAIRS)
def test_values_equal_medpys_on_made_up_masks(prediction, reference):
    assert_equal_to_medpy(prediction, reference, (0.625, 0.7, 2.5))


@pytest.mark.parametrize("label", [1, 2])
def test_values_equal_medpys_on_real_masks(label):
    paths = sorted((real_data("hippocampus") / "labelsTr").glob("*.nii.gz"))[:4]
    masks = [np.asarray(nibabel.load(path).dataobj) == label for path in paths]
    shape = np.min([one.shape for one in masks], axis=0)
    masks = [one[: shape[0], : shape[1], : shape[2]] for one in masks]  # as if one were the prediction of the next
    for prediction, reference in zip(masks, masks[1:]):
        assert_equal_to_medpy(prediction, reference, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("prediction, reference", PAIRS.values(), ids=PAIRS)
def test_surface_dice_equals_monais(prediction, reference):
    spacing = (0.625, 0.7, 2.5)
    ours = segmentation_metrics(prediction, reference, spacing=spacing, tolerance=1.3)["surface_dice"]
    batch = [torch.from_numpy(one)[None, None] for one in (prediction, reference)]
    theirs = compute_surface_dice(*batch, class_thresholds=[1.3], include_background=True, spacing=spacing)
    assert ours == pytest.approx(theirs.item(), rel=1e-6)


def test_a_distance_of_exactly_the_tolerance_counts_whatever_its_rounding():
    # 3 x 0.3 is 0.8999999999999999 and np.float32(0.3) a little more than 0.3.
    for spacing in (0.3, float(np.float32(0.3)), float(np.float32(0.1)) * 3):
        values = segmentation_metrics(
            mask(voxel(1, 1, 1)), mask(voxel(4, 1, 1)), spacing=(spacing, 1, 1), tolerance=0.9
        )
        assert values["surface_dice"] == 1


@pytest.mark.parametrize(
    "one", [mask(voxel(4, 5, 6)), blob(6), np.ones((5, 5, 5), bool)], ids=["voxel", "blob", "full"]
)
def test_identical_masks_are_perfect(one):
    assert segmentation_metrics(one, one.copy(), spacing=(1, 2, 3)) == dict(zip(METRIC_NAMES, (1, 1, 0, 0, 0, 0, 1)))


def test_two_empty_masks_agree_perfectly():
    assert segmentation_metrics(mask(), mask(), spacing=(1, 1, 1)) == dict(zip(METRIC_NAMES, (1, 1, 0, 0, 0, 0, 1)))


@pytest.mark.parametrize("pair", [(mask(), blob(7, shape=(12, 12, 12))), (mask(voxel(1, 1, 1)), mask())])
def test_exactly_one_empty_mask_gives_no_overlap_and_nan_distances(pair):
    values = segmentation_metrics(*pair, spacing=(1, 1, 1))
    assert values["dice"] == values["jaccard"] == values["surface_dice"] == 0
    assert all(math.isnan(values[name]) for name in DISTANCES)


def test_tensors_give_the_same_python_floats_as_arrays_and_stay_unchanged():
    arrays = blob(8), blob(9)
    tensors = [torch.from_numpy(array.copy()) for array in arrays]
    values = segmentation_metrics(*tensors, spacing=torch.tensor([0.5, 1.0, 2.0]))
    assert values == segmentation_metrics(*arrays, spacing=(0.5, 1.0, 2.0))
    assert tuple(values) == METRIC_NAMES
    assert METRIC_NAMES == ("dice", "jaccard", "hd95_mm", "asd_mm", "hd95_voxel", "asd_voxel", "surface_dice")
    assert all(type(value) is float for value in values.values())
    assert all(np.array_equal(tensor.numpy(), array) for tensor, array in zip(tensors, arrays))


def test_different_shapes_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(H, W, D\), got \(4, 4, 4\) and \(4, 4, 5\)"):
        segmentation_metrics(np.zeros((4, 4, 4), bool), np.zeros((4, 4, 5), bool), spacing=(1, 1, 1))


def test_a_channel_axis_is_refused_with_the_shape():
    with pytest.raises(ValueError, match=r"\(H, W, D\), got \(1, 4, 4, 4\) and"):
        segmentation_metrics(np.zeros((1, 4, 4, 4), bool), np.zeros((1, 4, 4, 4), bool), spacing=(1, 1, 1))


def test_labels_that_are_not_boolean_are_refused_with_the_dtype():
    with pytest.raises(TypeError, match="got bool and int64"):
        segmentation_metrics(np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), np.int64), spacing=(1, 1, 1))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -1, 1), (1, math.nan, 1), (1, math.inf, 1)])
def test_unusable_spacing_is_refused_even_for_empty_masks(spacing):
    with pytest.raises(ValueError, match=r"spacing must be three positive numbers in mm, got \(1.0, "):
        segmentation_metrics(mask(), mask(), spacing=spacing)
