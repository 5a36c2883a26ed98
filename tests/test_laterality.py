"""Tests of scripts/data/laterality.py and of what the preflight, a plan and inference make of pairs with a side."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import las, merged, real_data, run_bundle, save
from monai.transforms import RandAxisFlipd, RandFlipd, RandRotate90d

from scripts.data import DataError, LabelCoding
from scripts.data.laterality import Moments, moments_of, paired_by_name, paired_by_place, side_kept, told_by_side
from scripts.preflight import Preflight
from tools.preparation.plan import make_plan

TRAIN, SIDES, PREFLIGHT = "configs/train.json", "configs/augmentations/keep_sides.json", "configs/preflight.json"
SHAPE = (28, 20, 12)


def body(seed: int, *, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of two balls, 1 at the low and 2 at the high end of ``axis``."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    label = np.zeros(SHAPE, np.uint8)
    for value, place in ((1, 0.25), (2, 0.75)):
        centre = [(n - 1) * (place if a == axis else 0.5) + rng.uniform(-0.3, 0.3) for a, n in enumerate(SHAPE)]
        label[sum((g - c) ** 2 for g, c in zip(grid, centre)) < 3.2**2] = value
    return (100 + 80 * (label > 0) + rng.normal(0, 5, SHAPE)).astype(np.int16), label


def write(folder: Path, *, affine: np.ndarray, axis: int = 0, labels: dict | None = None) -> Path:
    entries = []
    for seed in range(4):
        image, label = body(seed, axis=axis)
        entries.append({"image": f"images/{seed}.nii.gz", "label": f"labels/{seed}.nii.gz"})
        save(image, affine, folder / entries[-1]["image"])
        save(label, affine, folder / entries[-1]["label"])
    declared = {"labels": labels} if labels else {}
    (folder / "dataset.json").write_text(json.dumps({**declared, "training": entries}))
    return folder


@pytest.mark.parametrize(
    "names, pairs",
    [
        (["left kidney", "right kidney"], [(0, 1)]),
        (["Kidney_R", "liver", "Kidney_L"], [(2, 0)]),
        (["RightLung", "LeftLung"], [(1, 0)]),
        (["kidneyL", "kidneyR"], [(0, 1)]),
        (["ctx-lh-cuneus", "ctx-rh-cuneus", "ctx-rh-insula"], [(0, 1)]),
        (["linke Niere", "rechte Niere"], [(0, 1)]),
        (["左肾", "右肾"], [(0, 1)]),
        (["rene sx", "rene dx"], [(0, 1)]),
        (["riñón izq.", "riñón der."], [(0, 1)]),
        (["vänster njure", "höger njure"], [(0, 1)]),
        (["spleen", "rkid", "lkid", "liver", "rad", "lad"], [(2, 1), (5, 4)]),
        (["LKidney", "RKidney", "Liver"], [(0, 1)]),
        (["rib_left_1", "rib_left_2", "rib_right_2", "rib_right_1"], [(0, 3), (1, 2)]),
        (["lower lobe, left", "Right lower lobe"], [(0, 1)]),
        (["anterior", "posterior"], []),
        (["left atrium", "right ventricle"], []),
        (["left atrium"], []),
        (["liver", "river"], []),
        (None, []),
    ],
)
def test_names_that_differ_by_their_side_alone_are_a_pair(names, pairs):
    assert paired_by_name(names) == pairs


def test_moments_are_in_millimetres_and_patient_axes():
    label = np.zeros((10, 8, 6), np.uint8)
    label[2:6, 3:5, 1:4] = 7  # 4 x 2 x 3 voxels
    affine = las((2.0, 1.0, 3.0), origin=(30.0, -20.0, 10.0))
    found = moments_of(label, affine)[7]
    assert found.volume == pytest.approx(24 * 6.0)
    np.testing.assert_allclose(found.centre, [30 - 2 * 3.5, -20 + 3.5, 10 + 3 * 2.0])
    # The variance of n equidistant points is (n² - 1) / 12 steps².
    np.testing.assert_allclose(found.covariance, np.diag([4 * 15 / 12, 3 / 12, 9 * 8 / 12]), atol=1e-9)


def at(x: float, y: float = 0, *, volume: float = 100.0, tilt: float = 0.0) -> Moments:
    covariance = np.diag([4.0, 9.0, 16.0])
    covariance[0, 1] = covariance[1, 0] = tilt
    return Moments(volume, np.array([x, y, 0.0]), covariance)


@pytest.mark.parametrize(
    "cases, pairs",
    [
        ([{1: at(-10), 2: at(10)}] * 3, [(1, 2)]),
        ([{1: at(10), 2: at(-10)}] * 3, [(2, 1)]),
        ([{1: at(-10, tilt=3), 2: at(10, tilt=-3)}], [(1, 2)]),
        ([{1: at(-10, tilt=5.5), 2: at(10, tilt=5.5)}], []),  # parallel, not mirrored
        ([{1: at(-10), 2: at(10, volume=30)}], []),
        ([{1: at(-10), 2: at(10, 15)}], []),  # behind it rather than beside it
        ([{1: at(-1), 2: at(1)}], []),  # within it
        ([{1: at(-10), 2: at(10)}, {1: at(10), 2: at(-10)}], []),  # now on one side, now on the other
        ([{1: at(-10), 2: at(10), 3: at(0)}, {3: at(0)}], [(1, 2)]),
        ([{1: at(-10), 2: at(10), 3: at(-30), 4: at(30)}], [(1, 2), (3, 4)]),
        ([], []),
    ],
)
def test_classes_that_lie_like_mirror_images_are_a_pair(cases, pairs):
    assert paired_by_place(cases) == pairs


def test_real_hippocampi_have_no_pair_though_they_have_two_parts():
    folder = real_data("hippocampus")
    cases = []
    for entry in json.loads((folder / "dataset.json").read_text())["training"][:20]:
        label = nibabel.load(folder / entry["label"])
        cases.append(moments_of(np.asarray(label.dataobj), label.affine))
    assert all({1, 2} <= set(case) for case in cases) and paired_by_place(cases) == []


def test_real_heads_and_tails_are_a_pair_where_they_lie_side_by_side():
    """The anterior parts of two hippocampi, one of them mirrored, at the place of the other side."""
    folder = real_data("hippocampus")
    cases = []
    for entry in json.loads((folder / "dataset.json").read_text())["training"][:10]:
        voxels = np.asarray(nibabel.load(folder / entry["label"]).dataobj) == 1
        cases.append(moments_of(np.concatenate([voxels, 2 * voxels[::-1]]), np.eye(4)))
    assert paired_by_place(cases) == [(1, 2)]


def one_organ(offset: float, volume: int = 0) -> dict[int, Moments]:
    return {1: Moments(100.0, np.zeros(3), np.diag([9.0, 9.0, 9.0]), offset)}


@pytest.mark.parametrize(
    "names, offsets, told",
    [
        (["left kidney"], [-20, -15, -17], True),
        (["kidney_R"], [20], True),
        (["left kidney"], [-20, 1, 20], False),  # crops around it
        (["left kidney"], [-20, 20, 20], False),  # now on one side, now on the other
        (["left atrium"], [-4, -3, -5], False),  # near the middle
        (["kidney"], [-20, -20], False),
        (None, [-20, -20], False),
    ],
)
def test_a_class_of_one_side_without_its_partner_counts_where_it_lies_on_one_side(names, offsets, told):
    assert (told_by_side(names, [one_organ(offset) for offset in offsets]) is not None) == told


def test_left_atria_may_be_mirrored_wherever_they_lie():
    folder = real_data("left_atrium")
    cases = []
    for entry in json.loads((folder / "dataset.json").read_text())["training"][:4]:
        label = nibabel.load(folder / entry["label"])
        cases.append(moments_of(np.asarray(label.dataobj), label.affine))
    assert told_by_side(["left atrium"], cases) is None


# --- preflight ---


def problems(folder: Path, augmentation, **changes):
    settings = {"num_labeled": 3, "label_coding": LabelCoding(2), "workers": 1, "in_channels": 1, **changes}
    report = Preflight(dataset_dir=folder, output_dir=folder / "out", augmentation=augmentation, **settings).report()
    return [problem for problem in report.problems if problem.check == "left and right"]


@pytest.mark.parametrize(
    "transform, warned",
    [
        (RandFlipd("image", spatial_axis=0), True),
        (RandFlipd("image", spatial_axis=[1, 0]), True),
        (RandFlipd("image"), True),
        (RandAxisFlipd("image"), True),
        (RandRotate90d("image", spatial_axes=(0, 1)), True),
        (RandRotate90d("image", spatial_axes=(1, 2)), False),
        (RandFlipd("image", spatial_axis=1), False),
    ],
)
def test_preflight_warns_of_what_exchanges_left_and_right(tmp_path, transform, warned):
    found = problems(write(tmp_path, affine=las((1, 1, 1))), [transform])
    assert [problem.level for problem in found] == (["warning"] if warned else [])


def test_preflight_goes_by_the_side_in_space_and_not_by_the_axis_of_the_file(tmp_path):
    flip = [RandFlipd("image", spatial_axis=0)]
    turned = np.eye(4)[[1, 0, 2, 3]]  # the file's first axis runs to the front
    assert problems(write(tmp_path / "a", affine=turned, axis=1), flip)
    assert not problems(write(tmp_path / "b", affine=turned, axis=0), flip)


def test_preflight_and_plan_keep_the_side_of_one_kidney_that_is_labeled_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.preparation.plan.seconds_per_iteration", lambda **_: 2.0)
    folder = write(tmp_path, affine=np.eye(4), labels={"0": "background", "1": "left organ"})
    for path in (folder / "labels").iterdir():
        label = nibabel.load(path)
        save((np.asarray(label.dataobj) == 1).astype(np.uint8), label.affine, path)
    coding = LabelCoding(1, class_names=["left organ"])
    (problem,) = problems(folder, [RandFlipd("image", spatial_axis=0)], label_coding=coding)
    assert "'left organ'" in problem.what
    path = tmp_path / "plan.json"
    make_plan(dataset_dir=str(folder), output=str(path), device="cpu", memory_gb=8)
    assert [flip["spatial_axis"] for flip in json.loads(path.read_text())["augmentation"]] == [1]


def test_preflight_names_the_pair_of_the_class_names_whatever_their_shape(tmp_path):
    coding = LabelCoding(2, class_names=["lung, left", "lung, right"])
    folder = write(tmp_path, affine=np.eye(4), axis=1)
    flip = [RandFlipd("image", spatial_axis=0)]
    assert not problems(folder, flip)
    (problem,) = problems(folder, flip, label_coding=coding)
    assert "'lung, left' and 'lung, right'" in problem.what


def test_defaults_are_warned_of_and_the_overlay_keeps_the_sides(tmp_path):
    folder = write(tmp_path, affine=las((1, 1, 1)))
    for files, count in (((TRAIN,), 1), ((TRAIN, SIDES), 0)):
        assert len(problems(folder, merged(*files).get_parsed_content("augmentation"))) == count


# --- plan and inference ---


@pytest.mark.parametrize(
    "labels, names",
    [
        (None, ["right 2-1", "left 2-1"]),
        ({"0": "background", "1": "R", "2": "L"}, ["R", "L"]),
        ({"0": "background", "1": "a", "2": "b"}, ["a", "b"]),
    ],
)
def test_plan_mirrors_from_back_to_front_alone_and_names_what_has_no_name(tmp_path, monkeypatch, labels, names):
    monkeypatch.setattr("tools.preparation.plan.seconds_per_iteration", lambda **_: 2.0)
    folder = write(tmp_path, affine=las((1, 1, 1)), labels=labels)  # the first axis runs to the left
    path = tmp_path / "plan.json"
    make_plan(dataset_dir=str(folder), output=str(path), device="cpu", memory_gb=8)
    planned = json.loads(path.read_text())
    assert planned["class_names"] == names
    assert [flip["spatial_axis"] for flip in planned["augmentation"]] == [1]
    coding = LabelCoding(2, class_names=names)
    assert not problems(folder, merged(TRAIN, str(path)).get_parsed_content("augmentation"), label_coding=coding)


def test_mirrored_windows_may_not_exchange_the_sides():
    sides = ["left lung", "right lung"]
    assert side_kept([1, 2], sides) == [1, 2] and side_kept([0], ["lung"]) == [0] and side_kept([], sides) == []
    with pytest.raises(DataError, match="'left lung' and 'right lung'"):
        side_kept([0, 1], sides)


def test_inference_refuses_to_mirror_left_and_right_of_classes_with_a_side(tmp_path):
    save(body(0)[0], np.eye(4), tmp_path / "in" / "a.nii.gz")
    options = {"input_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out"), "flip_axes": [0]}
    process = run_bundle(
        "inference", "configs/inference.json", num_classes=2, class_names="['left lung','right lung']", **options
    )
    assert process.returncode == 1 and "flip_axes" in process.stderr and "Traceback" not in process.stderr
