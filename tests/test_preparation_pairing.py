"""Tests of how the builder says what it paired, and of masks that are taken for images."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import SHAPES, blob, las, real_data, save, write_dataset

from scripts.data import DataError, LabelCoding, images_in
from scripts.data.contents import inspect
from scripts.data.folder import masks_among
from scripts.preflight import Preflight
from tools.preparation.dataset import make_dataset
from tools.preparation.pairing import CaseFiles, find_cases
from tools.preparation.splits import split_cases
from tools.preparation.summary import separated

SPACING = (1.0, 1.2, 2.0)


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def write(folder: Path, count: int, *, image: str, label: str, num_classes: int = 1) -> Path:
    """NIfTI pairs of ``count`` cases 0, 1, ..., with names of the given patterns."""
    for n in range(count):
        voxels, mask = blob(SHAPES[n % len(SHAPES)], seed=n, num_classes=num_classes)
        save(voxels, las(SPACING), folder / f"{image.format(n)}.nii.gz")
        save(mask, las(SPACING), folder / f"{label.format(n)}.nii.gz")
    return folder


def test_prefixes_are_paired_by_patterns(tmp_path, capsys):
    write(tmp_path, 3, image="IMG_{}", label="SEG_{}")
    save(blob(SHAPES[0], seed=9)[0], las(SPACING), tmp_path / "scout.nii.gz")
    found = find_cases(tmp_path, tmp_path, image_pattern="IMG_*", label_pattern="SEG_*")
    assert [(case.name, case.images[0].name, case.label.name) for case in found] == [
        (str(n), f"IMG_{n}.nii.gz", f"SEG_{n}.nii.gz") for n in range(3)
    ]
    printed = capsys.readouterr().out
    assert "3 cases, 3 with a label" in printed and "scout.nii.gz (not called IMG_*)" in printed


def test_patterns_hold_for_folders_with_channels_and_for_unlabeled_images(tmp_path):
    for n in range(3):
        voxels, mask = blob(SHAPES[0], seed=n)
        for channel in range(2):
            save(voxels + channel, las(SPACING), tmp_path / "i" / f"IMG_{n}_000{channel}.nii.gz")
        save(mask, las(SPACING), tmp_path / "l" / f"SEG_{n}.nii.gz")
    for channel in range(2):
        save(voxels, las(SPACING), tmp_path / "u" / f"IMG_9_000{channel}.nii.gz")
    path = make_dataset(
        image_dir=str(tmp_path / "i"),
        label_dir=str(tmp_path / "l"),
        unlabeled_dir=str(tmp_path / "u"),
        image_pattern="IMG_*",
        label_pattern="SEG_*",
        output_dir=str(tmp_path / "set"),
        validation=0,
        test=1,
    )
    lists = json.loads(path.read_text())
    assert lists["unlabeled"] == [{"image": ["../u/IMG_9_0000.nii.gz", "../u/IMG_9_0001.nii.gz"]}]
    assert not (tmp_path / "set" / "images").exists()
    for entry in lists["training"] + lists["test"]:
        number = Path(entry["label"]).name[4]
        assert entry["image"] == [f"../i/IMG_{number}_000{channel}.nii.gz" for channel in range(2)]


@pytest.mark.parametrize(
    "image, label, options",
    [
        ("site_A_01{}_T1", "site_A_01{}_seg", ["*_T1", "*_seg"]),
        ("IMG_{}", "SEG_{}", ["IMG_*", "SEG_*"]),
        ("{}", "{}_lesion", ["*", "*_lesion"]),
        ("a-{}.T1w", "m-{}", ["a-*.T1w", "m-*"]),
    ],
)
@pytest.mark.parametrize("orphan", [False, True])
def test_labels_without_images_are_refused_with_the_patterns_that_pair_them(tmp_path, image, label, options, orphan):
    for n in range(3):
        touch(tmp_path / "i", f"{image.format(n)}.nii.gz")
        touch(tmp_path / "l", f"{label.format(n)}.nii.gz")
    if orphan:
        touch(tmp_path / "l", f"{label.format(9)}.nii.gz")
    with pytest.raises(DataError) as caught:
        find_cases(tmp_path / "i", tmp_path / "l")
    given = re.findall(r'--\w+_pattern "([^"]+)"', str(caught.value))
    assert given == options
    if not orphan:
        found = find_cases(tmp_path / "i", tmp_path / "l", image_pattern=given[0], label_pattern=given[1])
        assert len(found) == 3 and all(case.label for case in found)


def test_no_patterns_are_made_up_for_names_that_have_nothing_in_common(tmp_path):
    touch(tmp_path / "i", "a_1.nii.gz", "a_2.nii.gz")
    touch(tmp_path / "l", "b_7.nii.gz", "b_8.nii.gz")
    with pytest.raises(DataError, match='"IMG_'):
        find_cases(tmp_path / "i", tmp_path / "l")


@pytest.mark.parametrize("pattern", ["IMG_", "*_*"])
def test_pattern_without_one_star_is_refused(tmp_path, pattern):
    write(tmp_path, 2, image="IMG_{}", label="SEG_{}")
    with pytest.raises(DataError, match="must have one \\*"):
        find_cases(tmp_path, tmp_path, image_pattern=pattern, label_pattern="SEG_*")


def test_labels_that_are_not_called_so_are_no_unlabeled_images(tmp_path):
    """Three of ten labels are called _seg, the others _roi."""
    write(tmp_path, 10, image="p{}", label="p{}_roi")
    for n in range(3):
        (tmp_path / f"p{n}_roi.nii.gz").rename(tmp_path / f"p{n}_seg.nii.gz")
    with pytest.raises(DataError, match='p3_roi.nii.gz .*--label_pattern "\\*_roi"'):
        find_cases(tmp_path, tmp_path)


def test_second_scans_that_are_called_after_the_first_are_unlabeled_images(tmp_path):
    write(tmp_path, 2, image="p{}", label="p{}_seg")
    save(blob(SHAPES[0], seed=9)[0], las(SPACING), tmp_path / "p0_2.nii.gz")
    assert [(case.name, bool(case.label)) for case in find_cases(tmp_path, tmp_path)] == [
        ("p0", True),
        ("p0_2", False),
        ("p1", True),
    ]


def test_masks_beside_unlabeled_images_are_left_out_and_named(tmp_path, capsys):
    write(tmp_path, 3, image="x{}", label="x{}_seg")
    found = find_cases(tmp_path, argument="--unlabeled_dir")
    assert [case.name for case in found] == ["x0", "x1", "x2"]
    assert "x0_seg.nii.gz" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names, masks",
    [
        (["a", "a_seg"], ["a_seg"]),
        (["a_image", "a-label", "b_seg"], ["a-label"]),
        (["a_seg", "b_seg"], []),
        (["a", "ab_seg"], []),
    ],
)
def test_names_of_masks_are_those_after_an_image_beside_them(names, masks):
    assert sorted(masks_among(names)) == masks


def test_inference_leaves_masks_beside_its_images_alone_and_says_so(tmp_path, caplog):
    write(tmp_path, 2, image="x{}", label="x{}_seg")
    with caplog.at_level(logging.WARNING):
        assert [Path(case["image"]).name for case in images_in(tmp_path)] == ["x0.nii.gz", "x1.nii.gz"]
    assert "x0_seg, x1_seg" in caplog.text
    channels = images_in(write(tmp_path / "m", 1, image="x{}_ct", label="x{}_seg"), in_channels=2, modalities="ct,seg")
    assert [Path(path).name for path in channels[0]["image"]] == ["x0_ct.nii.gz", "x0_seg.nii.gz"]


def test_no_label_at_all_is_refused_with_the_names_of_the_images(tmp_path):
    for n in range(3):
        save(blob(SHAPES[0], seed=n)[0], las(SPACING), tmp_path / f"p{n}" / "scan.nii.gz")
    with pytest.raises(DataError, match="none of 3 cases has a label .*p0"):
        make_dataset(case_dir=str(tmp_path), output_dir=str(tmp_path / "set"))


# --- by content ---


def test_real_labels_are_masks_and_real_images_are_none():
    for name in ("hippocampus", "left_atrium"):
        folder = real_data(name)
        for entry in json.loads((folder / "dataset.json").read_text())["training"][:6]:
            assert inspect((str(folder / entry["label"]), False)).mask_values
            assert inspect((str(folder / entry["image"]), False)).mask_values == ()


@pytest.mark.parametrize(
    "voxels, values",
    [
        (np.repeat(np.arange(4), 500).reshape(20, 10, 10, order="F"), (0, 1, 2, 3)),
        (np.random.default_rng(0).integers(0, 200, (20, 10, 10)), ()),  # an 8-bit image
        (np.repeat(np.arange(4), 500).reshape(20, 10, 10, order="F") / 2, (0, 0.5, 1, 1.5)),
        (np.repeat(np.arange(400), 5).reshape(20, 10, 10, order="F"), ()),  # too many values
        (np.full((20, 10, 10), 3), ()),  # one value is another problem
    ],
)
def test_few_values_in_long_runs_are_a_mask(tmp_path, voxels, values):
    path = save(voxels.astype(np.float32), np.eye(4), tmp_path / "a.nii.gz")
    assert inspect((path, False)).mask_values == values


def test_mask_in_the_list_of_images_is_an_error_on_the_grid_of_another_and_else_a_warning(tmp_path):
    folder = write_dataset(tmp_path)
    lists = json.loads((folder / "dataset.json").read_text())
    shutil.copy(folder / "labels" / "training_4.nii.gz", folder / "images" / "fifth.nii.gz")
    odd = nibabel.load(folder / "labels" / "training_5.nii.gz")
    save(np.asarray(odd.dataobj)[1:], odd.affine, folder / "images" / "alone.nii.gz")
    lists["unlabeled"] = [{"image": "images/fifth.nii.gz"}, {"image": "images/alone.nii.gz"}]
    (folder / "dataset.json").write_text(json.dumps(lists))
    report = Preflight(
        dataset_dir=folder, output_dir=folder / "o", num_labeled=3, label_coding=LabelCoding(1), in_channels=1
    ).report()
    found = {Path(p.file).name: p.level for p in report.problems if p.check == "mask"}
    assert found == {"fifth.nii.gz": "error", "alone.nii.gz": "warning"}


def test_mask_as_a_channel_is_none_of_our_business(tmp_path):
    folder = write_dataset(tmp_path)
    lists = json.loads((folder / "dataset.json").read_text())
    for cases in lists.values():
        for entry in cases:
            entry["image"] = [entry["image"], entry["label"]]
    (folder / "dataset.json").write_text(json.dumps(lists))
    report = Preflight(
        dataset_dir=folder, output_dir=folder / "o", num_labeled=3, label_coding=LabelCoding(1), in_channels=2
    ).report()
    assert report.problems == []


# --- what is said ---


def test_classes_of_the_cases_are_counted_by_name(tmp_path, capsys):
    for n in range(7):
        voxels, mask = blob(SHAPES[0], seed=n, num_classes=2)
        save(voxels, las(SPACING), tmp_path / "i" / f"p{n}.nii.gz")
        save(np.minimum(mask, 1) if n == 3 else mask, las(SPACING), tmp_path / "l" / f"p{n}.nii.gz")
    options = {"image_dir": str(tmp_path / "i"), "label_dir": str(tmp_path / "l"), "test": 0, "validation": 0}
    make_dataset(**options, output_dir=str(tmp_path / "set"), class_names=["anterior", "posterior"])
    printed = capsys.readouterr()
    assert "labeled cases: anterior: 7 of 7, posterior: 6 of 7" in printed.out and printed.err == ""
    make_dataset(**options, output_dir=str(tmp_path / "unnamed"))
    assert "labeled cases: class 1: 7 of 7, class 2: 6 of 7" in capsys.readouterr().out


def warnings(names: list[str], pattern: str | None = None) -> list[str]:
    cases = [CaseFiles(name, (Path("x"),), Path("y")) for name in names]
    split = split_cases(cases, labeled=None, validation=1, test=0.4, seed=0, patient_pattern=pattern)
    return separated(split, pattern)


@pytest.mark.parametrize(
    "names",
    [
        [f"p{p:02}_t{k}" for p in range(8) for k in (1, 2)],
        [f"p{p:02}_{k}" for p in range(8) for k in (1, 2)],
        [f"sub-{p:02}_ses-{k}_T1w" for p in range(8) for k in (1, 2)],
        [f"Pat{p}{s}" for p in range(8) for s in ("_pre", "_post", "")],
        [f"P{p:02}_2019{k}01" for p in range(8) for k in ("01", "02")],
    ],
)
def test_time_points_of_a_patient_in_different_lists_are_said_and_the_pattern_keeps_them_together(names):
    (line,) = warnings(names)
    pattern = line.rpartition(' "')[2].rstrip('"')
    assert warnings(names, pattern) == []
    cases = [CaseFiles(name, (Path("x"),), Path("y")) for name in names]
    split = split_cases(cases, labeled=None, validation=1, test=2, seed=0, patient_pattern=pattern)
    assert len(split.test) == 2 * len(names) // 8 and len(split.validation) == len(names) // 8


@pytest.mark.parametrize(
    "names",
    [
        [f"hippocampus_{n:03}" for n in range(20)],
        [f"la_{n}" for n in range(20)],
        [f"c{n}" for n in range(20)],
        [f"{grade}_{n:02}" for n in range(10) for grade in ("HGG", "LGG")],
        [f"BraTS19_2013_{n}_1" for n in range(20)],
    ],
)
def test_numbered_cases_are_no_time_points(names):
    assert warnings(names) == []


def test_scans_and_patients_are_counted_beside_each_other(tmp_path, capsys):
    for p in range(4):
        for t in range(2):
            voxels, mask = blob(SHAPES[0], seed=2 * p + t)
            save(voxels, las(SPACING), tmp_path / "i" / f"p{p}_{t}.nii.gz")
            save(mask, las(SPACING), tmp_path / "l" / f"p{p}_{t}.nii.gz")
    options = {"image_dir": str(tmp_path / "i"), "label_dir": str(tmp_path / "l"), "test": 1, "validation": 1}
    make_dataset(**options, output_dir=str(tmp_path / "set"), patient_pattern="^(p[0-9])")
    assert "4 labeled (2 patients), 0 unlabeled, 2 validation (1 patients)" in capsys.readouterr().out
    make_dataset(**options, output_dir=str(tmp_path / "set"), patient_pattern="^(p[0-9])", overwrite=True)
