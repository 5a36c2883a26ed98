"""Tests of tools/preparation/{left_atrium,pancreas_ct,brats2019,benchmark,orientation}.py on miniature originals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import ROOT, blob, real_data, save, small
from originals import write_dicom, write_nrrd
from scipy import ndimage

from scripts.data import DataError, Datalist, LabelCoding, check_cases
from tools.preparation import benchmark, brats2019, left_atrium, orientation, pancreas_ct

TRAIN, EVALUATE, INFERENCE = (str(ROOT / "configs" / f"{name}.json") for name in ("train", "evaluate", "inference"))


def checked(path: Path, *, in_channels: int = 1, coding: LabelCoding | None = None) -> Datalist:
    datalist = Datalist(path.parent)
    for cases in (datalist.training, datalist.validation, datalist.test):
        check_cases(cases, in_channels=in_channels, label_coding=coding or LabelCoding(1))
    return datalist


def names(cases: list[dict]) -> list[str]:
    return [Path(np.atleast_1d(case["image"])[0]).name.split(".")[0] for case in cases]


def voxels(path: str) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def organ(shape: tuple[int, int, int], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """CT (H, W, D), int, HU, and label of a lopsided organ of 90 HU in fat, off the centre, beside a larger one."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) / n for n in shape], indexing="ij"))
    centre = np.reshape((0.35, 0.6, 0.4), (3, 1, 1, 1)) + rng.uniform(-0.03, 0.03, (3, 1, 1, 1))
    label = (((grid - centre) / np.reshape((0.16, 0.08, 0.2), (3, 1, 1, 1))) ** 2).sum(axis=0) < 1
    label &= grid[0] + grid[2] < 0.95
    liver = (((grid - np.reshape((0.75, 0.5, 0.6), (3, 1, 1, 1))) / 0.2) ** 2).sum(axis=0) < 1
    image = -90 + 180 * label + 200 * liver + rng.normal(0, 15, shape)
    image[:, :2] = -1000
    return np.rint(image).astype(int), label.astype(np.uint8)


# --- the lists ---


@pytest.mark.parametrize(
    "name, counts",
    [
        ("left_atrium", {"training": 80, "test": 20}),
        ("pancreas_ct", {"training": 62, "test": 20}),
        ("brats2019", {"training": 250, "validation": 25, "test": 60}),
    ],
)
def test_case_lists_have_the_benchmarks_sizes_and_no_case_twice(name, counts):
    lists = benchmark.case_list(name)
    assert {role: len(members) for role, members in lists.items()} == counts
    everything = [case for members in lists.values() for case in members]
    assert len(set(everything)) == len(everything)


def test_left_atrium_list_is_the_real_data_sets():
    entries = json.loads((real_data("left_atrium") / "dataset.json").read_text())["training"]
    assert benchmark.case_list("left_atrium")["training"] == [Path(e["image"]).name.split(".")[0] for e in entries]


# --- the crop ---


def test_padded_box_widens_to_the_minimum_then_by_the_margins_and_stays_inside():
    mask = np.zeros((30, 30, 30), bool)
    mask[10:14, 2:4, 28:30] = True
    box = benchmark.padded_box(mask, minimum=(10, 2, 2), before=(1, 5, 3), after=(2, 1, 9))
    assert box == (slice(6, 19), slice(0, 5), slice(25, 30))


def test_cut_keeps_every_voxel_at_its_place_in_space():
    affine = np.array([[0, -2.0, 0, 5], [3, 0, 0, 1], [0, 0, 1.5, 2], [0, 0, 0, 1]])
    array = np.arange(6 * 7 * 8).reshape(6, 7, 8)
    part, moved = benchmark.cut(array, affine, (slice(2, 5), slice(1, 7), slice(3, 8)))
    assert part[0, 0, 0] == array[2, 1, 3]
    np.testing.assert_allclose(moved @ [0, 0, 0, 1], affine @ [2, 1, 3, 1])


# --- left atrium ---

ATRIA = ["06SR5RBREL16DQ6M8LWS", "0RZDK210BSMWAA6467LU", "UPT6DX9IQY9JAZ7HJKA7"]  # two for training, one for test


@pytest.fixture(scope="module")
def atria(tmp_path_factory) -> Path:
    """The challenge's folder with three scans of 150x140x10, 0.625 mm."""
    root = tmp_path_factory.mktemp("atria")
    for seed, name in enumerate(ATRIA):
        image, label = np.zeros((150, 140, 10), np.uint8), np.zeros((150, 140, 10), np.uint8)
        image[...] = np.random.default_rng(seed).integers(10, 200, image.shape)
        label[60 + seed : 80, 50:75, 3:6] = 255
        write_nrrd(root / "Training Set" / name / "lgemri.nrrd", image)
        write_nrrd(root / "Training Set" / name / "laendo.nrrd", label)
    return root


def test_left_atrium_is_z_scored_cropped_around_the_reference_and_in_canonical_order(atria, tmp_path, capsys):
    path = left_atrium.make_left_atrium(input_dir=str(atria), output_dir=str(tmp_path / "set"))
    datalist = checked(path)
    assert names(datalist.training) == ATRIA[:2] and names(datalist.test) == ATRIA[2:]
    assert "78 of the 80 training cases are not in" in capsys.readouterr().out
    case = datalist.training[0]
    image, label = nibabel.load(case["image"]), voxels(case["label"])
    assert 112 <= image.shape[0] <= 150 and 112 <= image.shape[1] <= 140 and image.shape[2] == 10
    assert set(np.unique(label)) == {0, 1} and label.sum() == 20 * 25 * 3
    original, affine = left_atrium.load_volume(atria / "Training Set" / ATRIA[0] / "lgemri.nrrd")
    score = (original - original.mean()) / original.std()
    start = np.rint(np.linalg.inv(affine) @ image.affine[:, 3])[:3].astype(int)
    end = start + image.shape
    assert np.allclose(voxels(case["image"]), score[tuple(map(slice, start, end))], atol=1e-5)
    # 46 voxels to 112 on either side of x 60-79, 10 to 19 voxels beyond, as far as there are any
    assert 60 - 46 - 19 <= start[0] <= 60 - 46 - 10 and end[0] == min(150, end[0]) and end[0] >= 80 + 46 + 10


def test_left_atrium_without_the_crop_is_the_whole_scan_and_the_same_voxels(atria, tmp_path):
    path = left_atrium.make_left_atrium(input_dir=str(atria), output_dir=str(tmp_path / "set"), crop="none")
    for case in checked(path).training:
        assert nibabel.load(case["image"]).shape == (150, 140, 10)


def test_left_atrium_crop_depends_on_the_seed_and_the_name_alone(atria):
    def shape(name: str, seed: int) -> tuple[int, ...]:
        folder = atria / "Training Set" / name
        return left_atrium.prepare_scan(folder, crop_to_reference=True, seed=seed)[0][0].shape

    first = shape(ATRIA[1], 0)
    shape(ATRIA[0], 0)
    assert shape(ATRIA[1], 0) == first
    assert len({shape(ATRIA[1], seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("values", [(0,), (0, 1), (0, 100, 255)])
def test_left_atrium_label_with_other_values_is_refused(atria, tmp_path, values):
    folder = tmp_path / "Training Set" / ATRIA[0]
    label = np.resize(np.array(values, np.uint8), (20, 20, 4))
    write_nrrd(folder / "lgemri.nrrd", np.arange(1600, dtype=np.int16).reshape(20, 20, 4))
    write_nrrd(folder / "laendo.nrrd", label)
    with pytest.raises(DataError, match="laendo.nrrd has the values .*expected are 0 and 255"):
        left_atrium.make_left_atrium(input_dir=str(tmp_path), output_dir=str(tmp_path / "set"))


# --- Pancreas-CT ---

PANCREATA = ["0057", "0018", "0050"]  # two for training, one for test
SHAPE, VOXEL = (40, 36, 30), (1.5, 1.5, 2.0)


def write_pancreata(root: Path, *, mirrored: tuple[int, ...] = (), header: bool = True) -> None:
    """The archive's folders with three scans; labels in another order of axes, and ``mirrored`` against the image.

    With ``header`` the affine of the label says truly how it lies in space.
    """
    for seed, number in enumerate(PANCREATA):
        image, label = organ(SHAPE, seed=seed)
        folder = root / "Pancreas-CT" / f"PANCREAS_{number}" / "11-24-2015" / "Pancreas-1"
        affine = write_dicom(folder, image, spacing=VOXEL, head_first=True)
        rows_from_below = np.diag([1.0, -1, 1, 1])
        rows_from_below[1, 3] = SHAPE[1] - 1
        stored = np.flip(label[:, ::-1], mirrored)  # what the header says and, where mirrored, what it does not
        label_affine = affine @ rows_from_below if header else np.diag([*VOXEL, 1.0])
        save(stored, label_affine, root / "TCIA_pancreas_labels" / f"label{number}.nii.gz")


def expected_pancreas(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU clipped, the label, both in (column, row, slice), and the affine (4, 4) that write_dicom gives them."""
    image, label = organ(SHAPE, seed=seed)
    lps = np.diag([*VOXEL, 1.0])
    lps[:3, 3] = (-11.0, 7.0, 30.0)
    return np.clip(image, -125, 275), label, np.diag([-1.0, -1, 1, 1]) @ lps


@pytest.mark.parametrize("mirrored, header", [((), True), ((0, 2), True), ((), False)])
def test_pancreas_label_lies_on_the_organ_whatever_its_header_says(tmp_path, mirrored, header, capsys):
    write_pancreata(tmp_path / "original", mirrored=mirrored, header=header)
    path = pancreas_ct.make_pancreas_ct(
        input_dir=str(tmp_path / "original"), output_dir=str(tmp_path / "set"), crop="none"
    )
    datalist = checked(path)
    printed = capsys.readouterr().out
    assert ("the headers are followed" in printed) == (header and not mirrored)
    assert names(datalist.training) == PANCREATA[:2] and names(datalist.test) == PANCREATA[2:]
    for seed, case in enumerate((*datalist.training, *datalist.test)):
        image, label = nibabel.load(case["image"]), nibabel.load(case["label"])
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_allclose(image.header.get_zooms(), (1, 1, 1), rtol=1e-5)
        hu, reference, affine = expected_pancreas(seed)
        # The reference and the image on the new grid, by scipy, through the physical positions of its voxels.
        change = np.linalg.inv(affine) @ image.affine
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in image.shape], indexing="ij")).reshape(3, -1)
        where = (change[:3, :3] @ grid + change[:3, 3:]).reshape(3, *image.shape)
        moved = ndimage.map_coordinates(hu.astype(float), where, order=1, mode="nearest")
        assert np.abs(np.asarray(image.dataobj) - moved).max() < 0.1
        near = ndimage.map_coordinates(reference.astype(float), where, order=1) > 0.5
        mask = np.asarray(label.dataobj) > 0
        assert 2 * (near & mask).sum() / (near.sum() + mask.sum()) > 0.95


def test_margin_that_comes_first_counts_for_the_minimum():
    mask = np.zeros((200, 200, 200), bool)
    mask[90:100, 60:160, 5:95] = True
    margin = {"minimum": (96,) * 3, "before": (25,) * 3, "after": (25,) * 3}
    assert benchmark.padded_box(mask, **margin) == (slice(22, 168), slice(35, 185), slice(0, 123))
    assert benchmark.padded_box(mask, **margin, margin_first=True) == (slice(47, 143), slice(35, 185), slice(0, 120))


def test_pancreas_crop_is_that_of_the_lists_in_the_plane_alone_or_another_along_all_axes(tmp_path, monkeypatch):
    monkeypatch.setattr(pancreas_ct, "PATCH", 1)
    monkeypatch.setattr(pancreas_ct, "MARGIN", 3)
    write_pancreata(tmp_path / "original")

    def made(crop: str) -> list[tuple[list[int], list[int], int]]:
        """Voxels before and after the pancreas along each axis, and the slices, of each case."""
        folder = str(tmp_path / crop)
        path = pancreas_ct.make_pancreas_ct(input_dir=str(tmp_path / "original"), output_dir=folder, crop=crop)
        found = []
        for case in checked(path).training:
            mask = voxels(case["label"])
            first, end = benchmark.bounding_box(mask)
            found.append((first.tolist(), (mask.shape - end).tolist(), mask.shape[2]))
        return found

    whole = made("none")
    for (first, behind, slices), (_, _, all_slices) in zip(made("reference"), whole):
        assert first[:2] == behind[:2] == [3, 3] and slices == all_slices
    for first, behind, slices in made("reference_box"):
        assert first == behind == [3, 3, 3] and slices < whole[0][2]


def test_contrast_is_d_prime_of_the_object_against_its_shell():
    label = np.zeros((20, 20, 20), np.uint8)
    label[8:12, 8:12, 8:12] = 1
    image = np.where(label > 0, 100.0, 40.0) + np.indices(label.shape)[0] % 2 * 20  # two values, 10 off the mean
    shell = ndimage.binary_dilation(label, iterations=orientation.SHELL) & (label == 0)
    inside, around = image[label > 0], image[shell]
    expected = abs(inside.mean() - around.mean()) / np.sqrt((inside.var() + around.var()) / 2)
    assert orientation.contrast(image, label) == pytest.approx(expected) and expected > 5
    assert orientation.contrast(image, np.zeros_like(label)) == 0
    moved = np.roll(label, 5, axis=2)  # so that its mirror image along the last axis lies elsewhere
    mirrored = orientation.flip(moved, (False, False, True))
    found = orientation.contrasts(np.where(mirrored > 0, 100.0, 40.0), moved)
    assert orientation.FLIPS[int(found.argmax())][2]


def test_pancreas_says_how_many_cases_agree_with_the_orientation_that_is_taken(monkeypatch, capsys):
    # Nine of ten look best mirrored, but not clearly enough on average.
    tables = [np.eye(len(orientation.FLIPS))[3] * 1.1 + np.eye(len(orientation.FLIPS))[0]] * 9
    tables.append(np.eye(len(orientation.FLIPS))[0] * 2)
    monkeypatch.setattr(pancreas_ct, "load_case", lambda series, label: (np.zeros(1), np.zeros(1), np.eye(4)))
    monkeypatch.setattr(pancreas_ct, "contrasts", lambda image, label: tables.pop())
    assert pancreas_ct.find_mirroring([(Path("a"), Path("b"))] * 10) == (False, False, False)
    assert "the headers are followed" in (out := capsys.readouterr().out) and "largest in 1 of 10 cases" in out


def test_label_in_the_axes_of_an_image_keeps_its_positions_in_space():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 9, (4, 5, 6))
    label_affine = np.array([[0, 0, 2.0, 3], [-1.5, 0, 0, 4], [0, 1.0, 0, 5], [0, 0, 0, 1]])
    affine = np.diag([-2.0, 1.5, 1.0, 1.0])
    turned, turned_affine = orientation.to_axes_of(label, label_affine, affine)
    assert turned.shape == (6, 4, 5)
    assert (np.sign(np.diag(turned_affine)[:3]) == np.sign(np.diag(affine)[:3])).all()
    for voxel in [(0, 0, 0), (3, 4, 5), (1, 2, 3)]:
        there = np.linalg.solve(turned_affine, label_affine @ [*voxel, 1])[:3]
        assert turned[tuple(np.rint(there).astype(int))] == label[voxel]


def test_pancreas_label_of_another_length_than_its_series_is_refused(tmp_path):
    write_pancreata(tmp_path)
    save(np.ones((40, 36, 29), np.uint8), np.diag([*VOXEL, 1.0]), tmp_path / "TCIA_pancreas_labels/label0057.nii.gz")
    with pytest.raises(DataError, match=r"label0057.nii.gz has shape \(40, 36, 29\) .* Slices may be missing"):
        pancreas_ct.make_pancreas_ct(input_dir=str(tmp_path), output_dir=str(tmp_path / "set"))


# --- BraTS 2019 ---

GLIOMAS = [f"BraTS19_{name}_1" for name in ("TCIA02_370", "CBICA_ASA", "TCIA12_470", "CBICA_AAP", "TCIA02_309")]


@pytest.fixture(scope="module")
def gliomas(tmp_path_factory) -> Path:
    """The challenge's folder with three cases for training, one for validation, one for test, 32x30x28 voxels."""
    root = tmp_path_factory.mktemp("gliomas")
    for seed, name in enumerate(GLIOMAS):
        image, tumour = blob((32, 30, 28), seed=seed)
        brain = np.zeros(image.shape, bool)
        brain[4:30, 3:28, 2:27] = True
        label = tumour.copy()
        label[(tumour > 0) & (np.indices(image.shape)[0] > 16)] = 2
        label[15:18, 13:16, 12:15] = 4
        folder = root / ("HGG" if seed % 2 else "LGG") / name
        for number, modality in enumerate(brats2019.MODALITIES):
            values = np.where(brain, np.maximum(image, 1) + 100 * number, 0).astype(np.int16)
            values[10, 10, 10] = 30_000
            save(values, np.diag([-1.0, -1.0, 1.0, 1.0]), folder / f"{name}_{modality}.nii.gz")
        save(label, np.diag([-1.0, -1.0, 1.0, 1.0]), folder / f"{name}_seg.nii.gz")
    return root


def test_brats_whole_tumour_is_flair_cropped_to_the_brain_and_clipped(gliomas, tmp_path):
    datalist = checked(brats2019.make_brats2019(input_dir=str(gliomas), output_dir=str(tmp_path / "set")))
    assert [names(part) for part in (datalist.training, datalist.validation, datalist.test)] == [
        GLIOMAS[:3],
        GLIOMAS[3:4],
        GLIOMAS[4:],
    ]
    case = datalist.training[0]
    original = voxels(gliomas / "LGG" / GLIOMAS[0] / f"{GLIOMAS[0]}_flair.nii.gz").astype(float)
    box = (slice(4, 30), slice(3, 28), slice(2, 27))
    clipped = np.minimum(original, np.percentile(original[original > 0], 99.9))[box]
    assert clipped.max() < 30_000
    np.testing.assert_allclose(voxels(case["image"]), clipped, rtol=1e-5)
    assert set(np.unique(voxels(case["label"]))) == {0, 1}
    np.testing.assert_allclose(nibabel.load(case["image"]).affine[:3, 3], (-4, -3, 2))


def test_brats_in_the_published_form_has_one_negative_background(gliomas, tmp_path):
    path = brats2019.make_brats2019(input_dir=str(gliomas), output_dir=str(tmp_path / "set"), intensity="benchmark")
    original = voxels(gliomas / "LGG" / GLIOMAS[0] / f"{GLIOMAS[0]}_flair.nii.gz").astype(float)
    clipped = np.minimum(original[4:30, 3:28, 2:27], np.percentile(original[4:30, 3:28, 2:27], 99.9))
    brain = clipped[clipped > 0]
    np.testing.assert_allclose(
        voxels(checked(path).training[0]["image"]), (clipped - brain.mean()) / brain.std(), rtol=1e-4, atol=1e-5
    )


def test_published_scaling_counts_zeros_for_the_clip_and_not_for_the_z_score():
    image = np.zeros((10, 10, 10), np.float32)
    image[5:] = np.random.default_rng(0).integers(1, 100, (5, 10, 10))
    image[9, 9, 9] = 5000
    scaled = brats2019.scale_as_published(image)
    clipped = np.minimum(image, np.percentile(image, 99.9))
    brain = clipped[image > 0]
    np.testing.assert_allclose(scaled[5:].ravel(), (brain - brain.mean()) / brain.std(), rtol=1e-4, atol=1e-5)
    assert np.allclose(scaled[:5], -brain.mean() / brain.std())


def test_brats_without_the_crop_is_the_whole_volume(gliomas, tmp_path):
    path = brats2019.make_brats2019(input_dir=str(gliomas), output_dir=str(tmp_path / "set"), crop="none")
    assert nibabel.load(checked(path).test[0]["image"]).shape == (32, 30, 28)


def test_brats_regions_train_with_four_modalities_and_the_shipped_overlay(gliomas, tmp_path, workflow):
    path = brats2019.make_brats2019(input_dir=str(gliomas), output_dir=str(tmp_path / "set"), task="regions")
    overlay = str(ROOT / "configs" / "data" / "brats2019_multiclass.json")
    regions = json.loads(Path(overlay).read_text())["regions"]
    datalist = checked(path, in_channels=4, coding=LabelCoding(3, regions))
    image = datalist.training[0]["image"]
    assert [Path(file).name[-12:] for file in image] == [f"_000{n}.nii.gz" for n in range(4)]
    settings = small(tmp_path / "set", tmp_path / "out", num_labeled=2, max_iterations=2)
    bundle = workflow(str(ROOT / "configs" / "train.json"), overlay, run_id="training", **settings)
    bundle.initialize()
    bundle.run()
    settings = json.loads((tmp_path / "out" / "models" / "model.json").read_text())
    assert (settings["in_channels"], settings["num_classes"], settings["normalize_nonzero"]) == (4, 3, True)


def test_brats_label_of_another_year_is_refused(gliomas, tmp_path):
    folder = tmp_path / "HGG" / GLIOMAS[0]
    for kind in (*brats2019.MODALITIES, "seg"):
        save(np.full((8, 8, 8), 3, np.uint8), np.eye(4), folder / f"{GLIOMAS[0]}_{kind}.nii.gz")
    with pytest.raises(DataError, match=r"_seg.nii.gz has label values \[3\]"):
        brats2019.make_brats2019(input_dir=str(tmp_path), output_dir=str(tmp_path / "set"))


# --- the whole path ---


def run(workflow, *files: str, **options) -> None:
    bundle = workflow(*files, **options)
    bundle.initialize()
    bundle.run()


@pytest.mark.parametrize(
    "name, overlays",
    [
        ("left_atrium", ["left_atrium", "left_atrium_benchmark", "without_reference_crop"]),
        ("pancreas_ct", ["pancreas_ct", "without_reference_crop"]),
        ("brats2019", ["brats2019"]),
    ],
)
def test_original_is_prepared_trained_on_and_evaluated_with_the_shipped_overlays(
    name, overlays, atria, gliomas, tmp_path, workflow
):
    folder, output = tmp_path / "set", tmp_path / "out"
    if name == "left_atrium":
        left_atrium.make_left_atrium(input_dir=str(atria), output_dir=str(folder), crop="none")
    elif name == "pancreas_ct":
        write_pancreata(tmp_path / "original")
        pancreas_ct.make_pancreas_ct(input_dir=str(tmp_path / "original"), output_dir=str(folder), crop="none")
    else:
        brats2019.make_brats2019(input_dir=str(gliomas), output_dir=str(folder))
    files = [TRAIN, *(str(ROOT / "configs" / "data" / f"{overlay}.json") for overlay in overlays)]
    settings = small(folder, output, num_labeled=1, labeled_batch_size=1, max_iterations=1)
    if name == "left_atrium":
        settings["stride"] = [16, 16, 16]
    run(workflow, *files, run_id="training", **settings)
    run(workflow, *files, EVALUATE, run_id="evaluation", **settings)
    datalist = Datalist(folder)
    with (output / "metrics.csv").open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == names(datalist.test)
    for case, path in zip(names(datalist.test), [case["label"] for case in datalist.test]):
        mask, label = nibabel.load(output / f"{case}_seg.nii.gz"), nibabel.load(path)
        assert mask.shape == label.shape and np.allclose(mask.affine, label.affine, atol=1e-4)


def test_brats_regions_are_evaluated_and_new_cases_of_one_file_per_modality_are_segmented(gliomas, tmp_path, workflow):
    folder, output, new = tmp_path / "set", tmp_path / "out", tmp_path / "new"
    brats2019.make_brats2019(input_dir=str(gliomas), output_dir=str(folder), task="regions")
    files = [TRAIN, str(ROOT / "configs" / "data" / "brats2019_multiclass.json")]
    settings = small(folder, output, num_labeled=2, max_iterations=1)
    run(workflow, *files, run_id="training", **settings)
    run(workflow, *files, EVALUATE, run_id="evaluation", **settings)
    with (output / "metrics.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["whole tumour", "tumour core", "enhancing tumour"]
    new.mkdir()
    channels = {
        modality: voxels(next(gliomas.rglob(f"{GLIOMAS[0]}_{modality}.nii.gz"))) for modality in brats2019.MODALITIES
    }
    for case, without in (("whole", None), ("partly", "t1ce")):
        for modality, image in channels.items():
            if modality != without:
                save(image, np.diag([-1.0, -1.0, 1.0, 1.0]), new / f"{case}_{modality}.nii.gz")
    stacked = np.stack([channels[modality] for modality in brats2019.MODALITIES], axis=-1)
    save(stacked, np.diag([-1.0, -1.0, 1.0, 1.0]), new / "stacked.nii.gz")
    overrides = {"input_dir": str(new), "output_dir": str(tmp_path / "masks"), "device": "$torch.device('cpu')"}
    overrides |= {"ckpt_path": str(output / "models" / "model.pt"), "modalities": list(brats2019.MODALITIES)}
    model = str(output / "models" / "model.json")
    with pytest.raises(RuntimeError):
        run(workflow, INFERENCE, model, run_id="inference", workflow_type="inference", **overrides)
    with (tmp_path / "masks" / "failures.csv").open(newline="") as file:
        (failure,) = csv.DictReader(file)
    assert failure["case"].endswith("partly_flair.nii.gz") and "partly_t1ce.nii.gz does not exist" in failure["reason"]
    masks = {path.name: voxels(path) for path in (tmp_path / "masks").glob("*.nii.gz")}
    assert masks.keys() == {"whole_flair_seg.nii.gz", "stacked_seg.nii.gz"}
    assert masks["stacked_seg.nii.gz"].shape == (32, 30, 28, 3)
    # The channels in the order that was given: the same as in one file.
    np.testing.assert_array_equal(masks["whole_flair_seg.nii.gz"], masks["stacked_seg.nii.gz"])


# --- arguments ---


@pytest.mark.parametrize("make", [left_atrium.make_left_atrium, pancreas_ct.make_pancreas_ct, brats2019.make_brats2019])
def test_wrong_arguments_and_folders_are_named(make, tmp_path):
    with pytest.raises(DataError, match="crop is 'whole'"):
        make(input_dir=str(tmp_path), output_dir=str(tmp_path / "set"), crop="whole")
    with pytest.raises(DataError, match="holds none of the benchmark's training cases .* as --input_dir"):
        make(input_dir=str(tmp_path), output_dir=str(tmp_path / "set"))
    (tmp_path / "dataset.json").touch()
    with pytest.raises(DataError, match="already holds a data set"):
        make(input_dir=str(tmp_path), output_dir=str(tmp_path))
