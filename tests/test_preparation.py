"""Tests of tools/preparation/{volumes,pairing,splits,dataset}.py: from folders of originals to a checked data set."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import ROOT, SHAPES, blob, las, run_bundle, run_process, save, small
from doc_pages import module_commands, options_of
from originals import write_dicom, write_nrrd

from scripts.data import DataError, Datalist, LabelCoding, check_cases
from tools.preparation.case_folders import find_case_folders
from tools.preparation.dataset import make_dataset
from tools.preparation.pairing import CaseFiles, find_cases
from tools.preparation.splits import fold_splits, patient_of, split_cases
from tools.preparation.volumes import load_volume, volumes_in

MODULE = "tools.preparation.dataset"
SPACING = (1.0, 1.2, 2.0)
ROLES = ("training", "unlabeled", "validation", "test")


def content(path: Path) -> dict:
    return json.loads(path.read_text())


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def write_pairs(
    folder: Path, names: list[str], *, image: str = "{}.nii.gz", label: str = "{}.nii.gz"
) -> dict[str, str]:
    """Writes NIfTI pairs under the given patterns and returns the arguments image_dir and label_dir."""
    for seed, name in enumerate(names):
        voxels, mask = blob(SHAPES[seed % len(SHAPES)], seed=seed)
        save(voxels, las(SPACING), folder / "images" / image.format(name))
        save(mask, las(SPACING), folder / "labels" / label.format(name))
    return {"image_dir": str(folder / "images"), "label_dir": str(folder / "labels")}


def checked(path: Path, *, in_channels: int = 1, num_classes: int = 1) -> Datalist:
    """Reads a written dataset.json as training does, and checks all its cases."""
    datalist = Datalist(path.parent)
    labeled = len(datalist.training)
    coding = LabelCoding(num_classes)
    for cases in (datalist.labeled(labeled), datalist.validation, datalist.test):
        check_cases(cases, in_channels=in_channels, label_coding=coding)
    check_cases(datalist.unlabeled(labeled), in_channels=in_channels)
    return datalist


# --- volumes ---


@pytest.mark.parametrize("head_first", [False, True])
def test_dicom_series_is_read_in_hu_with_every_voxel_at_its_place_in_space(tmp_path, head_first):
    volume = np.random.default_rng(0).integers(-1000, 1500, (7, 6, 5))
    affine = write_dicom(tmp_path / "case", volume, head_first=head_first)
    array, read_affine = load_volume(tmp_path / "case")
    assert array.shape == (7, 6, 5)
    for voxel in [(0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (3, 4, 2)]:
        position = affine @ [*voxel, 1]
        found = np.linalg.solve(read_affine, position)[:3]
        np.testing.assert_allclose(found, np.rint(found), atol=1e-6)
        assert array[tuple(np.rint(found).astype(int))] == volume[voxel]


def test_nrrd_is_read_with_its_voxels_and_its_affine_in_ras(tmp_path):
    volume = np.random.default_rng(0).integers(0, 255, (7, 6, 5)).astype(np.uint8)
    affine = write_nrrd(tmp_path / "a.nrrd", volume)
    array, read_affine = load_volume(tmp_path / "a.nrrd")
    assert np.array_equal(array, volume)
    np.testing.assert_allclose(read_affine, affine)


def test_nrrd_in_lps_by_its_short_name_lies_where_the_long_name_says(tmp_path):
    volume = np.zeros((7, 6, 5), np.uint8)
    affine = write_nrrd(tmp_path / "a.nrrd", volume)
    assert b"left-posterior-superior" in (tmp_path / "a.nrrd").read_bytes()
    write_nrrd(tmp_path / "b.nrrd", volume, space="LPS")
    np.testing.assert_allclose(load_volume(tmp_path / "b.nrrd")[1], affine)


def test_nrrd_in_a_space_that_is_not_understood_is_refused(tmp_path):
    write_nrrd(tmp_path / "a.nrrd", np.zeros((4, 4, 4), np.uint8), space="left-anterior-superior")
    with pytest.raises(DataError, match="a.nrrd is in the space 'left-anterior-superior'"):
        load_volume(tmp_path / "a.nrrd")


def test_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    write_nrrd(tmp_path / "a.nrrd", np.zeros((4, 4, 4), np.uint8))
    monkeypatch.setattr("tools.preparation.packages.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"a.nrrd needs the Python package pynrrd"):
        load_volume(tmp_path / "a.nrrd")


def test_series_with_a_missing_slice_is_refused(tmp_path):
    write_dicom(tmp_path / "case", np.zeros((4, 4, 6), int))
    (tmp_path / "case" / "1-021.dcm").unlink()  # slice 3
    with pytest.raises(DataError, match="2.50 to 5.00 mm apart .* some are missing"):
        load_volume(tmp_path / "case")


def test_two_series_in_one_folder_are_refused(tmp_path):
    write_dicom(tmp_path / "case", np.zeros((4, 4, 3), int))
    for path in list((tmp_path / "case").iterdir()):
        path.rename(path.with_name("a" + path.name))
    write_dicom(tmp_path / "case", np.zeros((4, 4, 3), int))
    with pytest.raises(DataError, match="holds 2 DICOM series"):
        load_volume(tmp_path / "case")


def test_unreadable_nrrd_ends_in_one_message(tmp_path):
    (tmp_path / "a.nrrd").write_text("not an image")
    with pytest.raises(DataError, match="a.nrrd cannot be read .*export it again"):
        load_volume(tmp_path / "a.nrrd")


def test_hidden_files_and_folders_without_dicom_are_no_volumes(tmp_path):
    touch(tmp_path, "._a.nii.gz", "a.nii.gz", "notes.txt")
    touch(tmp_path / "empty", "readme.txt")
    assert volumes_in(tmp_path, argument="--image_dir") == [tmp_path / "a.nii.gz"]
    with pytest.raises(DataError, match="--image_dir .*empty holds no volume"):
        volumes_in(tmp_path / "empty", argument="--image_dir")


# --- pairing ---


def pairs(cases: list[CaseFiles]) -> dict[str, tuple[list[str], str | None]]:
    return {case.name: ([path.name for path in case.images], case.label.name if case.label else None) for case in cases}


@pytest.mark.parametrize(
    "images, labels, expected",
    [
        (["a.nii.gz", "b.nii"], ["a.nii.gz"], {"a": (["a.nii.gz"], "a.nii.gz"), "b": (["b.nii"], None)}),
        (
            ["a_0000.nii.gz", "a_0001.nii.gz"],
            ["a.nii.gz"],
            {"a": (["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii.gz")},
        ),
        (["p_2019.nii.gz", "p_2020.nii.gz"], ["p_2019.nii.gz"], None),
        (["a.nrrd"], ["a-label.nrrd"], {"a": (["a.nrrd"], "a-label.nrrd")}),
        (["a.nii.gz"], ["a_seg.seg.nrrd"], {"a": (["a.nii.gz"], "a_seg.seg.nrrd")}),
        (["a_image.nii.gz"], ["a_Label.nii.gz"], {"a_image": (["a_image.nii.gz"], "a_Label.nii.gz")}),
    ],
    ids=["equal", "nnU-Net", "years-are-no-channels", "nrrd-label", "seg.nrrd", "both-suffixes"],
)
def test_images_and_labels_are_paired_by_their_names(tmp_path, images, labels, expected):
    touch(tmp_path / "i", *images)
    touch(tmp_path / "l", *labels)
    expected = expected or {
        "p_2019": (["p_2019.nii.gz"], "p_2019.nii.gz"),
        "p_2020": (["p_2020.nii.gz"], None),
    }
    assert pairs(find_cases(tmp_path / "i", tmp_path / "l")) == expected


def test_images_and_labels_may_lie_in_one_folder(tmp_path):
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz", "b.nii.gz")
    assert pairs(find_cases(tmp_path, tmp_path)) == {"a": (["a.nii.gz"], "a_seg.nii.gz"), "b": (["b.nii.gz"], None)}


def test_modalities_are_channels_in_the_order_in_which_they_are_given(tmp_path):
    touch(tmp_path / "i", "a_t1.nii.gz", "a_flair.nii.gz")
    touch(tmp_path / "l", "a_seg.nii.gz")
    found = find_cases(tmp_path / "i", tmp_path / "l", modalities=["t1", "flair"])
    assert pairs(found) == {"a": (["a_t1.nii.gz", "a_flair.nii.gz"], "a_seg.nii.gz")}


def test_modalities_stand_behind_either_separator_and_may_contain_one(tmp_path):
    touch(tmp_path, *(f"P-0-000-{ending}.nii.gz" for ending in ("ce", "seg", "t1", "t1_ce")))
    found = find_cases(tmp_path, tmp_path, modalities=["t1", "t1_ce", "ce"])
    channels = ["P-0-000-t1.nii.gz", "P-0-000-t1_ce.nii.gz", "P-0-000-ce.nii.gz"]
    assert pairs(found) == {"P-0-000": (channels, "P-0-000-seg.nii.gz")}


@pytest.mark.parametrize(
    "images, labels, modalities, message",
    [
        (["a.nii.gz"], ["b.nii.gz"], None, r"1 of 1 labels have no image .*b.nii.gz\); images are called a"),
        (["a.nii.gz"], ["a.nii.gz", "a_seg.nii.gz"], None, "are both labels of 'a'"),
        (["a_image.nii.gz", "a_ct.nii.gz"], ["a_seg.nii.gz"], None, "could belong to a_ct or a_image"),
        (["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz"], ["a.nii.gz"], None, "case 'b' has no image 0001"),
        (["a_t1.nii.gz", "a_t2.nii.gz", "b_t1.nii.gz"], ["a.nii.gz"], ["t1", "t2"], "case 'b' has no image t2"),
        (["a_t3.nii.gz"], ["a.nii.gz"], ["t1"], "a_t3.nii.gz does not end in _ or - and one of the modalities t1"),
        (["a.nii.gz", "a.nii"], ["a.nii.gz"], None, "are the same channel of case 'a'"),
    ],
)
def test_what_cannot_be_paired_is_named(tmp_path, images, labels, modalities, message):
    touch(tmp_path / "i", *images)
    touch(tmp_path / "l", *labels)
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path / "i", tmp_path / "l", modalities=modalities)


@pytest.mark.parametrize(
    "files, options, images, label",
    [
        (
            ["lgemri.nrrd", "laendo.nrrd"],
            {"modalities": ["lgemri"], "label_name": "laendo"},
            ["lgemri.nrrd"],
            "laendo.nrrd",
        ),
        (
            ["p_flair.nii.gz", "p_t1.nii.gz", "p_t1ce.nii.gz", "p_seg.nii.gz"],
            {"modalities": ["t1", "flair"]},
            ["p_t1.nii.gz", "p_flair.nii.gz"],
            "p_seg.nii.gz",
        ),
        (["image.nii.gz", "Label.nii.gz"], {}, ["image.nii.gz"], "Label.nii.gz"),
        (["mri.nii"], {}, ["mri.nii"], None),
    ],
    ids=["left-atrium", "brats", "plain", "unlabeled"],
)
def test_each_case_may_be_a_folder_also_within_groups(tmp_path, files, options, images, label):
    touch(tmp_path / "HGG" / "p", *files)
    touch(tmp_path / "HGG" / "empty")
    touch(tmp_path / "q", *files)
    assert pairs(find_case_folders(tmp_path, **options)) == {"p": (images, label), "q": (images, label)}


@pytest.mark.parametrize(
    "files, options, message",
    [
        (
            ["a.nii.gz", "b.nii.gz"],
            {},
            "has 2 images .a.nii.gz, b.nii.gz.; expected is one: name those .* --modalities",
        ),
        (["seg.nii.gz"], {}, "has 0 images .none."),
        (["a.nii.gz", "seg.nii.gz", "mask.nii.gz"], {}, "has the labels mask.nii.gz and seg.nii.gz: give --label_name"),
        (["p_t1.nii.gz"], {"modalities": ["t1", "t2"]}, "has 0 images called 't2' among p_t1.nii.gz"),
        (["t1.nii.gz", "x_t1.nii.gz"], {"modalities": ["t1"]}, "has 2 images called 't1'"),
        ([], {}, "has no folder with a volume: for all images in one, give --image_dir"),
    ],
)
def test_folder_of_a_case_that_cannot_be_understood_is_named(tmp_path, files, options, message):
    touch(tmp_path / "p", *files)
    with pytest.raises(DataError, match=message):
        find_case_folders(tmp_path, **options)


def test_cases_of_the_same_name_in_two_groups_and_no_folder_at_all_are_refused(tmp_path):
    for group in ("HGG", "LGG"):
        touch(tmp_path / group / "p", "a.nii.gz")
    with pytest.raises(DataError, match="HGG/p and .*LGG/p have the same name"):
        find_case_folders(tmp_path)
    with pytest.raises(DataError, match="--case_dir is .*nowhere', which is not a folder"):
        find_case_folders(tmp_path / "nowhere")


# --- splits ---


def many(count: int, *, scans: int = 2, without: int = 3) -> list[CaseFiles]:
    """``scans`` labeled scans of each of ``count`` patients, and one without a label of the first and others."""
    cases = [CaseFiles(f"P{p:02d}_{s}", (Path("x"),), Path("y")) for p in range(count) for s in range(scans)]
    return cases + [CaseFiles(f"P{p:02d}_u", (Path("x"),)) for p in [*range(count), *range(90, 90 + without)]]


def divide(cases, *, seed=0, labeled=None, validation=2, test=3, pattern="^P[0-9]+"):
    return split_cases(cases, labeled=labeled, validation=validation, test=test, seed=seed, patient_pattern=pattern)


def patients(cases: list[CaseFiles]) -> set[str]:
    return {case.name[:3] for case in cases}


def names(split) -> dict[str, list[str]]:
    return {
        role: [case.name for case in getattr(split, role)] for role in ("labeled", "unlabeled", "validation", "test")
    }


def test_split_depends_on_the_seed_and_the_names_alone():
    cases = many(12)
    assert names(divide(cases)) == names(divide(cases[::-1]))
    assert names(divide(cases)) != names(divide(cases, seed=1))


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_in_two_splits_and_no_scan_of_a_held_out_patient_is_trained_on(seed):
    cases = many(12)
    split = divide(cases, seed=seed, labeled=4)
    training = patients(split.labeled) | patients(split.unlabeled)
    assert not training & patients(split.test) and not training & patients(split.validation)
    assert not patients(split.test) & patients(split.validation)
    assert [len(patients(getattr(split, role))) for role in ("labeled", "validation", "test")] == [4, 2, 3]
    assert patients(split.left_out) == patients(split.test) | patients(split.validation)
    everything = [split.labeled, split.unlabeled, split.validation, split.test, split.left_out]
    assert sorted(case.name for part in everything for case in part) == sorted(case.name for case in cases)
    assert all(case.label for case in (*split.labeled, *split.validation, *split.test))


def test_more_labeled_patients_extend_the_list_and_change_no_other():
    few, more = divide(many(12, without=0), labeled=2), divide(many(12, without=0), labeled=5)
    assert names(more)["labeled"][: len(few.labeled)] == names(few)["labeled"]
    assert names(few)["test"] == names(more)["test"] and names(few)["validation"] == names(more)["validation"]


def test_fractions_are_of_the_patients_with_a_label():
    split = divide(many(20), labeled=0.25, validation=0.1, test=0.2)
    assert [len(patients(getattr(split, role))) for role in ("labeled", "validation", "test")] == [5, 2, 4]


def test_folds_hold_out_every_labeled_patient_once_and_share_the_test_patients():
    split = divide(many(12), labeled=7, validation=0)
    folds = fold_splits(split, 3, patient_pattern="^P[0-9]+")
    held_out = [patients(fold.validation) for fold in folds]
    assert sorted(map(len, held_out)) == [2, 2, 3]
    assert set.union(*held_out) == patients(split.labeled) and sum(map(len, held_out)) == 7
    for fold in folds:
        assert not patients(fold.validation) & (patients(fold.labeled) | patients(fold.unlabeled))
        assert fold.test == split.test


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"test": 12}, "test takes 12, validation 2"),
        ({"labeled": 8}, "12 patients have a label; test takes 3, validation 2 and labeled 8"),
        ({"labeled": 13}, "labeled is 13; it must be a number of patients from 0 to 12"),
        ({"test": -1}, "test is -1"),
        ({"validation": 1.5}, "validation is 1.5"),
        ({"pattern": "^Q"}, "finds nothing in the case name 'P00_0'"),
        ({"pattern": "("}, "is no regular expression"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(changes, message):
    with pytest.raises(DataError, match=re.escape(message).replace("\\ ", " ") if "(" in message else message):
        divide(many(12), **changes)
    with pytest.raises(DataError, match="from 2 to 7"):
        fold_splits(divide(many(12)), 8, patient_pattern="^P[0-9]+")


def test_patient_is_the_first_group_of_the_pattern_or_what_it_finds_or_the_name():
    assert patient_of("P01_2", None) == "P01_2"
    assert patient_of("P01_2", "^P[0-9]+") == "P01"
    assert patient_of("scan_P01_2", "_(P[0-9]+)_") == "P01"


# --- dataset.json ---


def test_nifti_stays_where_it_is_and_unlabeled_entries_have_no_label_key(tmp_path):
    arguments = write_pairs(tmp_path / "original", [f"c{n}" for n in range(10)])
    save(blob(SHAPES[0], seed=77)[0], las(SPACING), tmp_path / "more" / "extra.nii.gz")
    path = make_dataset(
        **arguments,
        output_dir=str(tmp_path / "set"),
        unlabeled_dir=str(tmp_path / "more"),
        labeled=3,
        class_names=["blob"],
    )
    assert [file.name for file in (tmp_path / "set").rglob("*")] == ["dataset.json"]
    lists = content(path)
    assert [len(lists[role]) for role in ROLES] == [3, 5, 1, 2]
    assert all(set(entry) == {"image"} for entry in lists["unlabeled"])
    assert "../more/extra.nii.gz" in [entry["image"] for entry in lists["unlabeled"]]
    assert lists["labels"] == {"0": "background", "1": "blob"}
    assert all(set(entry) == {"image", "label"} for role in ("training", "validation", "test") for entry in lists[role])
    checked(path)


def test_labels_are_never_replaced_by_their_renumbered_copies(tmp_path):
    arguments = write_pairs(tmp_path, [f"c{n}" for n in range(4)])
    before = {path: path.read_bytes() for path in (tmp_path / "labels").iterdir()}
    with pytest.raises(DataError, match="would be overwritten by its changed copy"):
        make_dataset(**arguments, output_dir=str(tmp_path), test=1, validation=0, label_map={1: 2})
    assert before == {path: path.read_bytes() for path in (tmp_path / "labels").iterdir()}


def test_numbers_behind_unlabeled_images_are_read_as_those_of_the_labeled(tmp_path):
    plain = write_pairs(tmp_path / "plain", [f"c{n}" for n in range(4)])
    channels = write_pairs(tmp_path / "channels", [f"c{n}" for n in range(4)], image="{}_0000.nii.gz")
    write_pairs(tmp_path / "more", ["p_0101", "p_0102"])
    options = {"unlabeled_dir": str(tmp_path / "more" / "images"), "test": 1, "validation": 0}
    lists = content(make_dataset(**plain, output_dir=str(tmp_path / "a"), **options))
    assert [Path(entry["image"]).name for entry in lists["unlabeled"]] == ["p_0101.nii.gz", "p_0102.nii.gz"]
    with pytest.raises(DataError, match="case 'p' has no image 0000"):
        make_dataset(**channels, output_dir=str(tmp_path / "b"), **options)
    write_pairs(tmp_path / "other", ["p"])
    options["unlabeled_dir"] = str(tmp_path / "other" / "images")
    with pytest.raises(DataError, match="p.nii.gz has no channel number such as _0000"):
        make_dataset(**channels, output_dir=str(tmp_path / "c"), **options)


def test_links_are_named_as_they_are_and_not_as_the_files_of_their_archive(tmp_path):
    arguments = write_pairs(tmp_path / "original", [f"c{n}" for n in range(4)])
    for folder in map(Path, arguments.values()):
        (folder / "store").mkdir()
        for number, path in enumerate(sorted(folder.glob("*.nii.gz"))):
            path.rename(folder / "store" / f"MD5-{number}.nii.gz")
            path.symlink_to(folder / "store" / f"MD5-{number}.nii.gz")
    path = make_dataset(**arguments, output_dir=str(tmp_path / "set"), test=1, validation=0)
    datalist = checked(path)
    cases = [*datalist.training, *datalist.test]
    assert sorted(Path(case["image"]).name for case in cases) == [f"c{n}.nii.gz" for n in range(4)]
    assert all(Path(case["image"]).name == Path(case["label"]).name for case in cases)


def test_names_of_a_dataset_json_beside_the_images_are_taken_over_unless_others_are_given(tmp_path):
    arguments = write_pairs(tmp_path / "original", [f"c{n}" for n in range(4)])
    beside = Path(arguments["image_dir"]).parent / "dataset.json"
    labels = {"background": 0, "tumour": 1, "ignore": 2}
    beside.write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 99}))

    def made(name: str, **options) -> dict:
        return content(make_dataset(**arguments, output_dir=str(tmp_path / name), test=1, validation=0, **options))

    taken = made("taken")
    assert (taken["channel_names"], taken["labels"], taken["numTraining"]) == ({"0": "CT"}, labels, 3)
    assert made("named", class_names=["blob"])["labels"] == {"0": "background", "1": "blob"}
    assert "labels" not in made("renumbered", label_map={1: 1})
    beside.write_text("{")
    with pytest.raises(DataError, match=f"{beside} is not valid JSON"):
        made("broken")
    assert not (tmp_path / "broken").exists()


def test_dicom_and_nrrd_become_nifti_on_one_grid_that_passes_the_checks(tmp_path):
    for seed, name in enumerate("abcd"):
        voxels, mask = blob((16, 18, 14), seed=seed)
        affine = write_dicom(tmp_path / "images" / name / "study" / "series", voxels.astype(int))
        if name == "a":  # by a program that stores the rows from below and the slices from the head
            mirror = np.diag([1.0, -1, -1, 1])
            mirror[:3, 3] = (0, 17, 13)
            save(mask[:, ::-1, ::-1], affine @ mirror, tmp_path / "labels" / "a_seg.nii.gz")
        else:
            write_nrrd(
                tmp_path / "labels" / f"{name}_seg.nrrd", mask * 255, spacing=(0.8, 0.9, 2.5), origin=(-11.0, 7.0, 30.0)
            )
    with pytest.raises(DataError, match=r"b.nii.gz has label values \[255\]"):  # a value of 255 is no class
        checked(make_dataset(**folders(tmp_path), output_dir=str(tmp_path / "raw"), labeled=2, test=1, validation=1))
    path = make_dataset(
        **folders(tmp_path), output_dir=str(tmp_path / "set"), labeled=2, test=1, validation=1, label_map={1: 1, 255: 1}
    )
    datalist = checked(path)
    for case in (*datalist.training, *datalist.validation, *datalist.test):
        image, label = nibabel.load(case["image"]), nibabel.load(case["label"])
        np.testing.assert_allclose(label.affine, image.affine)
        expected = blob((16, 18, 14), seed="abcd".index(Path(case["image"]).name[0]))
        np.testing.assert_allclose(image.affine, affine, atol=1e-4)
        assert np.array_equal(np.asarray(image.dataobj), expected[0])
        assert np.array_equal(np.asarray(label.dataobj), expected[1])
        assert image.get_data_dtype() == np.int16


def folders(root: Path) -> dict[str, str]:
    return {"image_dir": str(root / "images"), "label_dir": str(root / "labels")}


def test_folder_per_case_becomes_a_data_set_whose_images_are_not_called_alike(tmp_path):
    """NRRD, NIfTI, and a DICOM series beside its label, all of them with equal names."""
    for seed, name in enumerate("abcdef"):
        voxels, mask = blob((16, 18, 14), seed=seed)
        case = tmp_path / "cases" / name
        if name in "ab":
            write_nrrd(case / "image.nrrd", voxels)
            write_nrrd(case / "seg.nrrd", mask)
        elif name == "c":
            affine = write_dicom(case, voxels.astype(int))
            save(mask, affine, case / "seg.nii.gz")
        else:
            save(voxels, las(SPACING), case / "image.nii.gz")
            save(mask, las(SPACING), case / "seg.nii.gz")
    path = make_dataset(
        case_dir=str(tmp_path / "cases"), output_dir=str(tmp_path / "set"), labeled=2, test=2, validation=1
    )
    datalist = checked(path)
    labeled = [*datalist.labeled(2), *datalist.required("validation"), *datalist.required("test")]
    names = [Path(case["image"]).name for case in [*labeled, *datalist.unlabeled(2)]]
    assert sorted(names) == [f"{name}.nii.gz" for name in "abcdef"]
    for case in labeled:
        voxels, mask = blob((16, 18, 14), seed="abcdef".index(Path(case["image"]).name[0]))
        assert np.array_equal(np.asarray(nibabel.load(case["image"]).dataobj), voxels)
        assert np.array_equal(np.asarray(nibabel.load(case["label"]).dataobj), mask)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"image_dir": "a"},
        {"image_dir": "a", "label_dir": "b", "case_dir": "c"},
        {"case_dir": "c", "label_dir": "b"},
    ],
)
def test_folders_of_both_layouts_or_of_none_are_refused(tmp_path, arguments):
    with pytest.raises(DataError, match="give (either )?--"):
        make_dataset(**arguments, output_dir=str(tmp_path / "set"))


def test_label_off_the_grid_of_a_converted_image_is_refused(tmp_path):
    for name in "ab":
        write_nrrd(tmp_path / "images" / f"{name}.nrrd", np.ones((8, 8, 8), np.int16))
        write_nrrd(tmp_path / "labels" / f"{name}.nrrd", np.ones((8, 8, 8), np.uint8), origin=(-20.0, 15.0, 6.0))
    with pytest.raises(DataError, match=r"labels.*nrrd lies up to 2.00 mm away from .*images"):
        make_dataset(**folders(tmp_path), output_dir=str(tmp_path / "set"), test=1, validation=0)


@pytest.mark.parametrize("options", [{}, {"label_map": {1: 1}}], ids=["in place", "renumbered"])
def test_all_nifti_labels_off_the_grid_of_their_images_are_named_at_once(tmp_path, options):
    arguments = write_pairs(tmp_path, [f"p{n}" for n in range(5)])
    smaller, moved = tmp_path / "labels" / "p1.nii.gz", tmp_path / "labels" / "p3.nii.gz"
    mask = np.asarray(nibabel.load(smaller).dataobj)
    save(mask[:, 1:], las(SPACING), smaller)
    volume = nibabel.load(moved)
    save(np.asarray(volume.dataobj), volume.affine + [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 5], [0, 0, 0, 0]], moved)
    with pytest.raises(DataError) as caught:
        make_dataset(**arguments, output_dir=str(tmp_path / "set"), test=1, validation=0, **options)
    message = str(caught.value)
    assert str(smaller) in message and str(moved) in message and "labels/p0" not in message
    assert not (tmp_path / "set" / "dataset.json").exists()


def test_nifti_label_with_other_axes_becomes_a_copy_with_those_of_its_image(tmp_path):
    arguments = write_pairs(tmp_path, [f"p{n}" for n in range(4)])
    label = tmp_path / "labels" / "p2.nii.gz"
    volume = nibabel.load(label)
    expected = np.asarray(volume.dataobj).copy()
    turned = volume.as_reoriented(nibabel.orientations.axcodes2ornt("PIR"))
    save(np.asarray(turned.dataobj), turned.affine, label)
    datalist = checked(make_dataset(**arguments, output_dir=str(tmp_path / "set"), test=1, validation=1))
    used = {Path(case["label"]) for case in (*datalist.training, *datalist.validation, *datalist.test)}
    (copy,) = [path for path in used if path.parent.parent.name == "set"]
    assert copy.name == "p2.nii.gz" and np.array_equal(np.asarray(nibabel.load(copy).dataobj), expected)


def test_all_files_that_cannot_be_converted_are_named_at_once_and_the_others_are_whole(tmp_path):
    for seed, name in enumerate("abcdef"):
        voxels, mask = blob((20, 18, 16), seed=seed)
        write_nrrd(tmp_path / "images" / f"{name}.nrrd", voxels)
        write_nrrd(tmp_path / "labels" / f"{name}.nrrd", mask)
    (tmp_path / "images" / "b.nrrd").write_text("not an image")
    for name in "de":
        path = tmp_path / "labels" / f"{name}.nrrd"
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError) as caught:
        make_dataset(**folders(tmp_path), output_dir=str(tmp_path / "set"), test=1, validation=0)
    first, *listed = str(caught.value).splitlines()
    assert first == "3 of 6 cases cannot be used:"
    named = sorted(re.match(r"  (\S+) cannot be read", line)[1] for line in listed)
    assert named == [str(tmp_path / part) for part in ("images/b.nrrd", "labels/d.nrrd", "labels/e.nrrd")]
    assert not (tmp_path / "set" / "dataset.json").exists()
    written = {path.name for path in (tmp_path / "set" / "labels").iterdir()}
    assert written == {"a.nii.gz", "c.nii.gz", "f.nii.gz"}
    for path in (tmp_path / "set").rglob("*.nii.gz"):
        assert nibabel.load(path).get_fdata().max() > 0


def test_all_truncated_labels_that_a_label_map_would_change_are_named_at_once(tmp_path):
    arguments = write_pairs(tmp_path, [f"p{n:03}" for n in range(5)])
    broken = [tmp_path / "labels" / f"p{n:03}.nii.gz" for n in (1, 3, 4)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match="^3 of 5 cases cannot be used:") as caught:
        make_dataset(**arguments, output_dir=str(tmp_path / "set"), test=1, validation=0, label_map={1: 2})
    assert [path for path in broken if str(path) not in str(caught.value)] == []


def test_several_channels_are_listed_in_order_and_pass_the_checks(tmp_path):
    for seed, name in enumerate("abcd"):
        image, mask = blob((16, 18, 14), seed=seed)
        save(image, las(SPACING), tmp_path / "images" / f"{name}_0000.nii.gz")
        save(image * 2, las(SPACING), tmp_path / "images" / f"{name}_0001.nii.gz")
        save(mask, las(SPACING), tmp_path / "labels" / f"{name}.nii.gz")
    path = make_dataset(**folders(tmp_path), output_dir=str(tmp_path / "set"), labeled=1, test=1, validation=1)
    datalist = checked(path, in_channels=2)
    (unlabeled,) = datalist.unlabeled(1)
    assert [Path(image).name[1:] for image in unlabeled["image"]] == ["_0000.nii.gz", "_0001.nii.gz"]


def test_folds_are_written_side_by_side_and_each_passes_the_checks(tmp_path):
    arguments = write_pairs(tmp_path / "original", [f"c{n}" for n in range(6)])
    first = make_dataset(**arguments, output_dir=str(tmp_path / "set"), folds=2, test=2)
    assert first == tmp_path / "set" / "fold_0" / "dataset.json"
    parts = [checked(tmp_path / "set" / f"fold_{n}" / "dataset.json") for n in range(2)]
    images = [{Path(case["image"]).resolve() for case in part.validation} for part in parts]
    assert not images[0] & images[1] and sum(map(len, images)) == 4
    with pytest.raises(DataError, match="the folds are the validation"):
        make_dataset(**arguments, output_dir=str(tmp_path / "other"), folds=2, validation=1)


def test_an_existing_data_set_and_a_repeated_name_are_refused(tmp_path):
    arguments = write_pairs(tmp_path / "original", ["a", "b"])
    make_dataset(**arguments, output_dir=str(tmp_path / "set"), test=1, validation=0)
    with pytest.raises(DataError, match="already holds a data set"):
        make_dataset(**arguments, output_dir=str(tmp_path / "set"))
    with pytest.raises(DataError, match="have the same case name"):
        make_dataset(**arguments, output_dir=str(tmp_path / "new"), unlabeled_dir=arguments["image_dir"])


def test_numbers_of_the_first_pages_suit_ten_labeled_volumes(tmp_path):
    """Of README.md and docs/preparation.md: training, validation and evaluation all find their cases."""
    commands = [
        options_of(w) for w in module_commands(ROOT / "docs" / "preparation.md", inline=False) if w[0] == MODULE
    ]
    (numbers,) = [options for options in commands if "image_dir" in options]
    arguments = write_pairs(tmp_path / "original", [f"c{n}" for n in range(10)])
    for n in range(4):
        save(blob(SHAPES[0], seed=70 + n)[0], las(SPACING), tmp_path / "original" / "images" / f"more{n}.nii.gz")
    given = {name: int(numbers[name]) for name in ("labeled", "validation", "test")}
    datalist = checked(make_dataset(**arguments, output_dir=str(tmp_path / "set"), **given))
    assert len(datalist.required("test")) == given["test"] and len(datalist.validation) == given["validation"]
    readme = [options_of(words) for words in module_commands(ROOT / "README.md", inline=False) if "prepare" in words]
    assert [{name: int(options[name]) for name in given} for options in readme] == [given]
    assert len(datalist.labeled(given["labeled"])) + sum(given.values()) - given["labeled"] == 10
    assert len(datalist.unlabeled(given["labeled"])) == 4


# --- as a user types it ---


def test_the_command_makes_a_data_set_that_a_training_process_takes(tmp_path):
    for seed, name in enumerate("abcde"):
        voxels, mask = blob((20, 18, 16), seed=seed)
        write_dicom(tmp_path / "images" / name, voxels.astype(int))
        write_nrrd(tmp_path / "labels" / f"{name}.nrrd", mask, spacing=(0.8, 0.9, 2.5), origin=(-11.0, 7.0, 30.0))
    command = [sys.executable, "-m", "tools.preparation.dataset", "--output_dir", str(tmp_path / "set")]
    command += ["--image_dir", str(tmp_path / "images"), "--label_dir", str(tmp_path / "labels")]
    finished = run_process([*command, "--labeled", "2", "--validation", "1", "--test", "1"])
    assert finished.returncode == 0, finished.stderr
    assert "2 labeled, 1 unlabeled, 1 validation, 1 test" in finished.stdout
    settings = small(tmp_path / "set", tmp_path / "out", num_labeled=2, max_iterations=2, foreground_crops=0.5)
    finished = run_bundle("training", str(ROOT / "configs" / "train.json"), **settings)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "out" / "models" / "model.pt").is_file()
