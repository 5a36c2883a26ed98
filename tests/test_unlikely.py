"""Tests of scripts/data/unlikely.py: labels that are inverted, drawn on single slices, or have exchanged classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import blob, las, real_data, save
from test_preflight import found, make

from scripts.data import DataError, LabelCoding
from scripts.data.contents import inspect
from scripts.data.unlikely import Label, unlikely_labels
from scripts.errors import UserError
from tools.preparation.summary import check_class_names, out_of_line

SHAPE, AFFINE = (30, 28, 26), las((1.0, 1.2, 0.8))


def labels(folder: Path, *, count: int = 5, num_classes: int = 1, **changed: np.ndarray) -> list[Label]:
    """Labels of ``count`` ellipsoids, and those of ``changed`` by name."""
    voxels = {f"{n}": blob(SHAPE, seed=n, num_classes=num_classes)[1] for n in range(count)} | changed
    return [Label(inspect((save(array, AFFINE, folder / f"{name}.nii.gz"), True))) for name, array in voxels.items()]


def checks(problems) -> list[tuple[str, str]]:
    problems = list(problems)
    assert all(problem.level == "warning" for problem in problems)
    return [(problem.check, Path(problem.file).name) for problem in problems]


def every(step: int, axis: int, voxels: np.ndarray) -> np.ndarray:
    """``voxels`` with all slices but each ``step``-th along ``axis`` empty."""
    kept = np.moveaxis(np.zeros_like(voxels), axis, 0)
    kept[3::step] = np.moveaxis(voxels, axis, 0)[3::step]
    return np.moveaxis(kept, 0, axis)


def test_slices_count_the_voxels_of_each_class(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    voxels[4, 5, 6] = voxels[0, 0, 0] = 3
    slices = inspect((save(voxels[..., None], AFFINE, tmp_path / "a.nii"), True)).slices
    assert list(slices) == [1, 2, 3]
    for value, along in slices.items():
        for axis, counts in enumerate(along):
            expected = (voxels == value).sum(tuple({0, 1, 2} - {axis}))
            assert counts.tolist() == expected.tolist()


@pytest.mark.parametrize("count", [0, 1, 4])
def test_inverted_label_is_named_with_the_share_of_the_others(tmp_path, count):
    voxels = blob(SHAPE, seed=9)[1]
    (problem,) = unlikely_labels(labels(tmp_path, count=count, inverted=1 - voxels))
    assert checks([problem]) == [("foreground", "inverted.nii.gz")]
    assert f"{100 * np.mean(voxels == 0):.2g} %" in str(problem)
    assert ("4 other labels" in str(problem)) == (count == 4)


def test_label_of_another_size_is_named_where_the_others_agree(tmp_path):
    small, values = np.zeros(SHAPE, np.uint8), [0.01, 0.3, 0.0004, 0.05, 0.0002]
    small[12:14, 12:14, 12:14] = 1
    assert checks(unlikely_labels(labels(tmp_path, count=4, small=small))) == [("foreground", "small.nii.gz")]
    lesions = {}
    for n, share in enumerate(values):  # as lesions: each of another size
        radius = (share * small.size) ** (1 / 3) / 2
        grid = np.indices(SHAPE) - np.array([15, 14, 13])[:, None, None, None]
        lesions[f"l{n}"] = (np.abs(grid) <= radius).all(0).astype(np.uint8)
    assert checks(unlikely_labels(labels(tmp_path, count=0, **lesions))) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [3, 30], ids=["each-third", "one"])
def test_label_on_single_slices_is_named_with_slices_and_axis(tmp_path, axis, step):
    shift = 0 if step == 3 else -10  # so that the one slice is inside of the object
    voxels = every(step, axis, np.roll(blob((30, 30, 30), seed=1)[1], shift, axis))
    spacing = np.roll([2.0, 2.0, 0.5], axis - 2)
    (label,) = [Label(inspect((save(voxels, las(spacing), tmp_path / "a.nii.gz"), True)))]
    (problem,) = unlikely_labels([label])
    drawn = np.flatnonzero(voxels.any(tuple({0, 1, 2} - {axis})))
    assert problem.check == "single slices" and f"axis {axis}" in problem.what
    assert f"{len(drawn)} of 30 slices" in problem.what and ", ".join(map(str, drawn[:5])) in problem.what
    assert "--ignore_value" in problem.remedy
    voxels[voxels == 0] = 255
    label = Label(inspect((save(voxels, las(spacing), tmp_path / "a.nii.gz"), True)))
    assert checks(unlikely_labels([label], ignore_value=255)) == []


def test_one_class_on_single_slices_is_found_and_a_small_object_is_not(tmp_path):
    voxels = blob((30, 30, 30), seed=1, num_classes=2)[1]
    voxels[(voxels == 2) & (np.arange(30) != 18)] = 0
    affine = las((2.0, 2.0, 1.0))
    label = Label(inspect((save(voxels, affine, tmp_path / "a.nii.gz"), True)))
    (problem,) = unlikely_labels([label])
    assert problem.check == "single slices" and "value 2 only in 1 of 30 slices" in problem.what
    assert checks(unlikely_labels([label._replace(annotated=[1])])) == []
    lesion = np.zeros((30, 30, 30), np.uint8)
    lesion[4:6, 4:6, 3] = lesion[20:23, 9:11, 12] = 1
    assert checks(unlikely_labels([Label(inspect((save(lesion, affine, tmp_path / "b.nii.gz"), True)))])) == []


def test_exchanged_classes_are_found_in_view_of_four_others(tmp_path):
    exchanged = np.array([0, 2, 1], np.uint8)[blob(SHAPE, seed=7, num_classes=2)[1]]
    expected = [("exchanged classes", "exchanged.nii.gz")]
    assert checks(unlikely_labels(labels(tmp_path, count=4, num_classes=2, exchanged=exchanged))) == expected
    assert checks(unlikely_labels(labels(tmp_path, count=3, num_classes=2, exchanged=exchanged))) == []


def test_class_name_that_is_given_twice_is_refused():
    with pytest.raises(DataError, match="class_names has 'a' twice"):
        check_class_names(["a", "b", "a"], {})
    with pytest.raises(UserError, match=r"class_names is \['a', 'a'\]"):
        LabelCoding(2, class_names=["a", "a"])


def test_preflight_and_data_preparation_name_an_inverted_label(tiny_copy):
    path = tiny_copy / "labels" / "training_1.nii.gz"
    voxels = blob((20, 26, 18), seed=1)[1]
    save(1 - voxels, las((1.1, 1.0, 1.8)), path)
    assert found(make(tiny_copy).report(), "warning") == [("foreground", path.name)]
    files = sorted((tiny_copy / "labels").iterdir())
    (line,) = out_of_line({file.name: {"label": file} for file in files})
    assert line.startswith(f"warning: {path} has foreground in ")


@pytest.mark.parametrize("name, coding", [("hippocampus", LabelCoding(2)), ("left_atrium", LabelCoding(1))])
def test_real_labels_are_in_line(name, coding):
    files = sorted((real_data(name) / "labelsTr").iterdir())[: 20 if name == "hippocampus" else 3]
    assert checks(unlikely_labels([Label(inspect((str(file), True))) for file in files])) == []
