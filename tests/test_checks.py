"""Tests of scripts/data/checks.py: every fault of a case's files is named, and all of them in one message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import blob, las, oblique, save

from scripts.data import DataError, LabelCoding, check_cases

SHAPE = (10, 9, 8)
AFFINE = las((1.0, 1.2, 2.0))
ONE_CLASS = LabelCoding(1)


def noise(shape) -> np.ndarray:
    """An image (float32) that is not the same everywhere, which would be a fault of its own."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def make(folder: Path, *, name: str = "case", image=None, label=None, label_affine=AFFINE) -> dict[str, str]:
    """Writes a case, good unless told otherwise, and returns its entry."""
    good_image, good_label = blob(SHAPE, seed=0)
    return {
        "image": save(good_image if image is None else image, AFFINE, folder / f"{name}_image.nii.gz"),
        "label": save(good_label if label is None else label, label_affine, folder / f"{name}_label.nii.gz"),
    }


def check(cases, *, in_channels: int = 1, label_coding=ONE_CLASS):
    return check_cases(cases, in_channels=in_channels, label_coding=label_coding)


def problems(cases, **options) -> str:
    with pytest.raises(DataError) as caught:
        check(cases, **options)
    return str(caught.value)


# --- what passes ---


def test_good_cases_are_returned_as_they_are(tmp_path):
    cases = [make(tmp_path), {"image": make(tmp_path, name="unlabeled")["image"]}]
    expected = [dict(case) for case in cases]
    assert check(cases[:1]) == expected[:1]
    assert check(cases, label_coding=None) == expected
    assert check([]) == []


def test_labels_are_not_opened_without_a_label_coding(tmp_path):
    case = make(tmp_path)
    Path(case["label"]).unlink()
    assert check([case], label_coding=None) == [case]
    assert "does not exist" in problems([case])


@pytest.mark.parametrize(
    "shapes, channels",
    [([(*SHAPE, 1)], 1), ([(*SHAPE, 3)], 3), ([SHAPE, SHAPE], 2), ([SHAPE, (*SHAPE, 2)], 3)],
    ids=["4D-of-one", "4D", "two-files", "3D-and-4D"],
)
def test_channels_are_counted_over_the_files_and_last_axes_of_a_case(tmp_path, shapes, channels):
    images = [save(noise(shape), AFFINE, tmp_path / f"{i}.nii.gz") for i, shape in enumerate(shapes)]
    cases = [{**make(tmp_path), "image": images}]
    assert check(cases, in_channels=channels) == cases
    assert f"{images[0]} has {channels} channel(s)" in problems(cases, in_channels=channels + 1)


def test_label_may_have_a_last_axis_of_one_and_differ_by_rounding_in_its_header(tmp_path):
    shifted = AFFINE.copy()
    shifted[:3, 3] += 0.01
    case = make(tmp_path, label=blob(SHAPE, seed=0)[1][..., None], label_affine=shifted)
    assert check([case]) == [case]


@pytest.mark.parametrize(
    "coding, allowed", [(LabelCoding(1), 1), (LabelCoding(2), 2), (LabelCoding(2, [[1, 4], [4]]), 4)]
)
def test_label_values_of_the_coding_are_allowed_and_the_next_one_is_not(tmp_path, coding, allowed):
    label = np.zeros(SHAPE, np.uint8)
    label[3, 3, 3] = allowed
    assert check([make(tmp_path, label=label)], label_coding=coding)
    label[3, 3, 3] = allowed + 1
    assert f"has label values [{allowed + 1}]" in problems([make(tmp_path, label=label)], label_coding=coding)


# --- what does not ---


@pytest.mark.parametrize("key", ["image", "label"])
def test_missing_file_is_named_with_the_remedy(tmp_path, key):
    case = make(tmp_path)
    Path(case[key]).unlink()
    assert f"{case[key]} does not exist: correct dataset.json or dataset_dir." in problems([case])


@pytest.mark.parametrize("key", ["image", "label"])
def test_text_that_is_called_nifti_is_named_as_unreadable(tmp_path, key):
    case = make(tmp_path)
    Path(case[key]).write_text("<html>404</html>")
    assert f"{case[key]} is not a readable NIfTI file" in problems([case])


def test_truncated_label_is_named_with_the_remedy(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 2, (64, 64, 32)).astype(np.uint8)  # too large for one read
    case = make(tmp_path, image=voxels, label=voxels)
    content = Path(case["label"]).read_bytes()
    Path(case["label"]).write_bytes(content[: len(content) * 9 // 10])
    text = problems([case])
    assert f"{case['label']} cannot be read (" in text and "copy the file again" in text


@pytest.mark.parametrize("shape", [(10, 9), (10, 9, 8, 1, 2)])
def test_image_that_is_not_a_volume_is_named_with_its_shape(tmp_path, shape):
    case = make(tmp_path, image=np.zeros(shape, np.float32))
    assert f"{case['image']} has shape {shape}: images are 3D" in problems([case])


def test_channel_mismatch_names_the_file_both_numbers_and_the_setting(tmp_path):
    case = make(tmp_path, image=np.zeros((*SHAPE, 3), np.float32))
    text = problems([case])
    assert f"{case['image']} has 3 channel(s) and the network takes 1: set in_channels to 3." in text


@pytest.mark.parametrize("shape", [(10, 9, 7), (9, 10, 8), (10, 9, 8, 2)])
def test_label_of_another_shape_names_both_files_and_shapes(tmp_path, shape):
    case = make(tmp_path, label=np.zeros(shape, np.uint8))
    text = problems([case])
    assert f"{case['label']} has shape {shape}" in text and f"{case['image']} has {SHAPE}" in text


@pytest.mark.parametrize(
    "affine",
    [np.diag([1.0, 1.2, 2.0, 1.0]), oblique((1.0, 1.2, 2.0)), las((1.0, 1.2, 2.0), origin=(30.0, -20.0, 11.5))],
    ids=["mirrored", "turned", "shifted"],
)
def test_label_on_another_grid_names_both_files_the_distance_and_the_remedy(tmp_path, affine):
    case = make(tmp_path, label_affine=affine)
    corners = np.array([[i, j, k, 1] for i in (0, 9) for j in (0, 8) for k in (0, 7)]).T
    away = np.abs((affine - AFFINE) @ corners).max()
    text = problems([case])
    assert f"{case['label']} lies up to {away:.1f} mm away from its image {case['image']}" in text
    assert "resample the label onto the image, or copy the image's header" in text


def test_unexpected_label_values_are_listed_with_the_expected_ones_and_the_setting(tmp_path):
    case = make(tmp_path, label=(blob(SHAPE, seed=0)[1] * 255).astype(np.uint8))
    text = problems([case], label_coding=LabelCoding(2))
    assert f"{case['label']} has label values [255] and [0, 1, 2] are expected: set num_classes" in text


def test_case_that_needs_a_label_and_lists_none_is_named(tmp_path):
    case = {"image": make(tmp_path)["image"]}
    text = problems([case])
    assert case["image"] in text and "label" in text


def test_all_problems_of_all_cases_come_in_one_message(tmp_path):
    missing, mirrored, colour, good = (make(tmp_path, name=name) for name in ("a", "b", "c", "d"))
    Path(missing["image"]).unlink()
    save(blob(SHAPE, seed=0)[1], np.diag([1.0, 1.2, 2.0, 1.0]), Path(mirrored["label"]))
    save(noise((*SHAPE, 3)), AFFINE, Path(colour["image"]))
    save(np.full(SHAPE, 7, np.uint8), AFFINE, Path(colour["label"]))
    text = problems([missing, mirrored, colour, good])
    assert text.startswith("4 problem(s) in 4 cases:\n")
    for path in (missing["image"], mirrored["label"], colour["image"], colour["label"]):
        assert path in text
    assert good["image"] not in text


def test_more_than_twenty_problems_are_counted_and_not_listed(tmp_path):
    cases = [{"image": str(tmp_path / f"{n}.nii.gz"), "label": str(tmp_path / f"{n}.nii.gz")} for n in range(23)]
    lines = problems(cases).splitlines()
    assert lines[0] == "23 problem(s) in 23 cases:"
    assert [line for line in lines if "does not exist" in line] == lines[1:21]
    assert lines[21].strip() == "and 3 more"
