"""Tests of scripts/data/datalist.py: which cases are labeled, unlabeled, for validation and test, and its errors."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import LABELED, ROOT, delete_unlabeled_labels, small
from monai.bundle import ConfigParser

from scripts.data import DataError, Datalist, case_name, images_in


def write(folder: Path, content: object) -> Path:
    """Writes dataset.json, as text if it is a string, and returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def numbered(count: int) -> dict[str, list[dict[str, str]]]:
    return {"training": [{"image": f"i{n}.nii.gz", "label": f"l{n}.nii.gz"} for n in range(count)]}


def names(cases: list[dict]) -> list[str]:
    return [Path(case["image"]).name for case in cases]


# --- names and folders ---


@pytest.mark.parametrize(
    "path, name",
    [
        ("a/case_1.nii.gz", "case_1"),
        ("case.v2.nii.gz", "case.v2"),
        ("CASE.NII.GZ", "CASE"),
        ("case.nii", "case"),
        ("1.3.12.2.nii", "1.3.12.2"),
        ("case.mha", "case"),
    ],
)
def test_case_name_is_the_file_name_without_its_suffix(path, name):
    assert case_name(path) == case_name(Path(path)) == name


def test_images_in_lists_what_is_called_nifti_in_a_folder_by_name(tmp_path):
    for name in ("b.nii.gz", "a.nii", "C.NII.GZ", "notes.txt", "d.nii.gz.part"):
        (tmp_path / name).touch()
    # Listed, so that they are reported as cases that failed and not passed over in silence.
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    expected = ("C.NII.GZ", "a.nii", "b.nii.gz", "folder.nii.gz", "loop.nii.gz")
    assert images_in(tmp_path) == [{"image": str(tmp_path / name)} for name in expected]


def test_two_images_that_would_have_the_same_mask_are_refused(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"a.nii and .*a.nii.gz would have the same mask, a_seg.nii.gz"):
        images_in(tmp_path)


def test_images_in_names_the_folder_and_the_argument_when_there_is_none_or_it_is_empty(tmp_path):
    with pytest.raises(DataError, match=r"gone is not a folder"):
        images_in(tmp_path / "gone")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=rf"{tmp_path} holds no \.nii\.gz or \.nii file"):
        images_in(tmp_path)


def test_images_in_leaves_hidden_files_out_and_warns_of_what_it_does_not_read(tmp_path, caplog):
    for name in ("a.nii.gz", "._a.nii.gz", "b.nrrd", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "series").mkdir()
    assert images_in(tmp_path) == [{"image": str(tmp_path / "a.nii.gz")}]
    assert f"{tmp_path}: b.nrrd, series not segmented; convert volumes to NIfTI" in caplog.text
    assert "notes.txt" not in caplog.text and "._a" not in caplog.text
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(DataError, match=r"no \.nii\.gz or \.nii file but b\.nrrd, series"):
        images_in(tmp_path)


@pytest.mark.parametrize(
    "endings, options",
    [
        (("0000", "0001"), {"in_channels": 2}),
        (("t1", "flair"), {"in_channels": 2, "modalities": ["t1", "flair"]}),
        (("t1", "flair"), {"in_channels": 2, "modalities": "t1,flair"}),
    ],
)
def test_images_in_groups_the_files_of_a_case_in_the_order_of_the_channels(tmp_path, endings, options):
    first, second = endings
    for name in (f"a_1_{second}.nii.gz", f"a_1_{first}.nii.gz", f"b_{second}.nii", "four_axes.nii.gz", "x_0002.nii.gz"):
        (tmp_path / name).touch()
    cases = [case["image"] for case in images_in(tmp_path, **options)]
    complete = [str(tmp_path / f"a_1_{ending}.nii.gz") for ending in endings]
    incomplete = [str(tmp_path / f"b_{ending}.nii") for ending in endings]  # the first is missing, and named
    assert cases == [complete, incomplete, str(tmp_path / "four_axes.nii.gz"), str(tmp_path / "x_0002.nii.gz")]


@pytest.mark.parametrize("separator", ["_", "-"])
@pytest.mark.parametrize("modalities", [["t1", "t1_ce", "ce"], ["ce", "t1_ce", "t1"], "t1,ce,t1_ce"])
def test_images_in_takes_the_longest_ending_behind_either_separator(tmp_path, separator, modalities):
    endings = modalities.split(",") if isinstance(modalities, str) else modalities
    for case in ("BraTS-GLI-00000-000", "a_1", "t1"):
        for ending in endings:
            (tmp_path / f"{case}{separator}{ending}.nii.gz").touch()
    (tmp_path / f"b{separator}t1_ce.nii.gz").touch()  # alone: what is missing is named with its separator
    (tmp_path / f"{separator}t1.nii.gz").touch()  # the ending of no case
    cases = [case["image"] for case in images_in(tmp_path, in_channels=3, modalities=modalities)]
    expected = [
        [str(tmp_path / f"{case}{separator}{ending}.nii.gz") for ending in endings]
        for case in ("BraTS-GLI-00000-000", "a_1", "b", "t1")
    ]
    assert [case for case in cases if isinstance(case, list)] == expected
    assert [case for case in cases if isinstance(case, str)] == [str(tmp_path / f"{separator}t1.nii.gz")]


def test_images_in_passes_no_file_over_where_names_differ_in_the_separator(tmp_path):
    for name in ("a_t1", "a_t2", "a-t1"):
        (tmp_path / f"{name}.nii.gz").touch()
    cases = [case["image"] for case in images_in(tmp_path, in_channels=2, modalities=["t1", "t2"])]
    assert cases == [[str(tmp_path / f"a{s}{ending}.nii.gz") for ending in ("t1", "t2")] for s in "-_"]


def test_images_in_takes_endings_in_upper_and_lower_case(tmp_path):
    for name in ("a_FLAIR.nii.gz", "a_T1.nii.gz", "b_flair.nii.gz", "b_t1.nii.gz"):
        (tmp_path / name).touch()
    cases = [case["image"] for case in images_in(tmp_path, in_channels=2, modalities=["t1", "Flair"])]
    assert cases == [
        [str(tmp_path / "a_T1.nii.gz"), str(tmp_path / "a_FLAIR.nii.gz")],
        [str(tmp_path / "b_t1.nii.gz"), str(tmp_path / "b_flair.nii.gz")],
    ]


def test_images_in_tells_modalities_apart_that_differ_in_their_case_alone(tmp_path):
    for name in ("a_t1.nii.gz", "a_T1.nii.gz"):
        (tmp_path / name).touch()
    for modalities in (["t1", "T1"], ["T1", "t1"]):
        (case,) = images_in(tmp_path, in_channels=2, modalities=modalities)
        assert case["image"] == [str(tmp_path / f"a_{name}.nii.gz") for name in modalities]


@pytest.mark.parametrize("names", [("a_FLAIR.nii.gz", "a_flair.nii.gz"), ("a_flair.nii", "a_flair.nii.gz")])
def test_images_in_names_two_files_that_would_be_the_same_channel(tmp_path, names):
    for name in (*names, "a_t1.nii.gz"):
        (tmp_path / name).touch()
    first, second = (str(tmp_path / name) for name in sorted(names))
    with pytest.raises(DataError, match=f"^{first} and {second} are both the channel flair of case 'a'"):
        images_in(tmp_path, in_channels=2, modalities=["flair", "t1"])


def test_images_in_takes_a_number_behind_a_hyphen_for_part_of_the_name(tmp_path):
    for name in ("2023-0000.nii.gz", "2023-0001.nii.gz"):
        (tmp_path / name).touch()
    cases = [case["image"] for case in images_in(tmp_path, in_channels=2)]
    assert cases == [str(tmp_path / "2023-0000.nii.gz"), str(tmp_path / "2023-0001.nii.gz")]


def test_images_in_takes_every_file_for_a_case_where_the_network_has_one_channel(tmp_path):
    for name in ("a_0000.nii.gz", "a_0001.nii.gz"):
        (tmp_path / name).touch()
    assert [Path(case["image"]).name for case in images_in(tmp_path)] == ["a_0000.nii.gz", "a_0001.nii.gz"]


@pytest.mark.parametrize("modalities", [["t1"], ["t1", "t1"], "t1,t2,flair"])
def test_images_in_refuses_other_modalities_than_channels(tmp_path, modalities):
    (tmp_path / "a_t1.nii.gz").touch()
    with pytest.raises(DataError, match="the network takes 2 channel"):
        images_in(tmp_path, in_channels=2, modalities=modalities)


# --- the lists ---


def test_first_training_cases_are_labeled_and_the_others_and_the_unlabeled_list_are_unlabeled(tmp_path):
    content = {**numbered(4), "unlabeled": [{"image": "u0.nii.gz"}, "u1.nii.gz"], "test": ["t.nii.gz"]}
    datalist = Datalist(write(tmp_path, content))
    assert datalist.labeled(2) == [
        {"image": str(tmp_path / f"i{n}.nii.gz"), "label": str(tmp_path / f"l{n}.nii.gz")} for n in range(2)
    ]
    assert names(datalist.unlabeled(2)) == ["i2.nii.gz", "i3.nii.gz", "u0.nii.gz", "u1.nii.gz"]
    assert datalist.test == [{"image": str(tmp_path / "t.nii.gz")}]
    assert datalist.validation == []


def test_unlabeled_cases_have_no_label_key_although_dataset_json_names_a_label(tmp_path):
    content = {**numbered(3), "unlabeled": [{"image": "u.nii.gz", "label": "secret.nii.gz"}]}
    cases = Datalist(write(tmp_path, content)).unlabeled(1)
    assert [set(case) for case in cases] == [{"image"}] * 3


def test_all_cases_may_be_labeled(tmp_path):
    datalist = Datalist(write(tmp_path, numbered(2)))
    assert len(datalist.labeled(2)) == 2
    assert datalist.unlabeled(2) == []


def test_several_modalities_are_a_list_of_files_of_one_case(tmp_path):
    entry = {"image": ["t1.nii.gz", "t2.nii.gz"], "label": "l.nii.gz"}
    datalist = Datalist(write(tmp_path, {"training": [entry, entry]}))
    images = [str(tmp_path / "t1.nii.gz"), str(tmp_path / "t2.nii.gz")]
    assert datalist.labeled(1) == [{"image": images, "label": str(tmp_path / "l.nii.gz")}]
    assert datalist.unlabeled(1) == [{"image": images}]


def test_absolute_paths_stay_as_they_are(tmp_path):
    image = str(tmp_path / "elsewhere" / "i.nii.gz")
    assert Datalist(write(tmp_path / "data", {"training": [{"image": image}]})).unlabeled(0) == [{"image": image}]


def test_splits_cut_the_training_list_by_position(tmp_path):
    splits = {"training": [0, 3], "validation": [3, 4], "test": [5, 7]}
    datalist = Datalist(write(tmp_path, numbered(7)), splits=splits)
    assert names(datalist.training) == ["i0.nii.gz", "i1.nii.gz", "i2.nii.gz"]
    assert names(datalist.unlabeled(2)) == ["i2.nii.gz"]
    assert names(datalist.validation) == ["i3.nii.gz"]
    assert names(datalist.test) == ["i5.nii.gz", "i6.nii.gz"]


def test_lists_that_splits_does_not_name_stay_those_of_the_file(tmp_path):
    content = {**numbered(4), "test": [{"image": "t.nii.gz"}]}
    datalist = Datalist(write(tmp_path, content), splits={"training": [0, 3], "validation": [3, 4]})
    assert names(datalist.test) == ["t.nii.gz"]


def test_cases_cut_for_validation_and_test_are_not_trained_on_even_if_splits_does_not_name_training(tmp_path):
    datalist = Datalist(write(tmp_path, numbered(4)), splits={"validation": [0, 1], "test": [3, 4]})
    assert names(datalist.labeled(1) + datalist.unlabeled(1)) == ["i1.nii.gz", "i2.nii.gz"]


def test_required_returns_the_list_or_says_how_to_get_one(tmp_path):
    datalist = Datalist(write(tmp_path, {**numbered(1), "test": ["t.nii.gz"]}))
    assert names(datalist.required("test")) == ["t.nii.gz"]
    with pytest.raises(DataError, match=r"dataset\.json has no list 'validation'"):
        datalist.required("validation")
    for name in ("training", "tset", None):
        with pytest.raises(DataError, match=rf"evaluation_list is {name!r}"):
            datalist.required(name)


# --- errors ---


def test_missing_dataset_json_is_named_with_the_setting_that_points_to_it(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}/dataset\.json does not exist"):
        Datalist(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"training": [', r"dataset\.json is not valid JSON \(.*line 1.*\): correct the file"),
        ([], r"dataset\.json must be an object with a list 'training'"),
        ({"training": "images"}, r"dataset\.json must be an object with a list 'training'"),
        (
            {"training": [{"label": "l.nii.gz"}]},
            r"entry 0 of 'training' is \{'label': 'l\.nii\.gz'\}; .*\"image\": path",
        ),
        ({"training": [{"image": "i.nii.gz"}, 7]}, r"entry 1 of 'training' is 7; .*\"image\": path"),
        ({"training": [{"image": ""}]}, r"entry 0 of 'training' is \{'image': ''\}; .*\"image\": path"),
        ({"training": [], "unlabeled": [{"image": None}]}, r"entry 0 of 'unlabeled' is .*None\}; .*\"image\": path"),
        ({"training": [], "validation": "images"}, r"'validation'"),
        ({"training": [], "test": None}, r"'test'"),
    ],
    ids=[
        "malformed",
        "not-an-object",
        "training-not-a-list",
        "no-image",
        "number",
        "empty-path",
        "null-image",
        "text-for-a-list",
        "null-list",
    ],
)
def test_wrong_form_is_described_with_the_file_and_the_entry(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        Datalist(write(tmp_path, content))
    assert str(tmp_path / "dataset.json") in str(caught.value)


def test_dataset_json_that_is_not_text_is_called_invalid(tmp_path):
    (tmp_path / "dataset.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match=r"dataset\.json is not valid JSON"):
        Datalist(tmp_path)


def test_missing_training_list_is_an_error_that_names_file_and_list(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.json .*training"):
        Datalist(write(tmp_path, {"test": ["t.nii.gz"]})).labeled(1)


@pytest.mark.parametrize(
    "num_labeled, message",
    [(4, r"num_labeled is 4 and .*dataset\.json lists 3 training cases"), (0, r"num_labeled is 0")],
    ids=["too-many", "none"],
)
def test_num_labeled_out_of_range_is_named(tmp_path, num_labeled, message):
    with pytest.raises(DataError, match=message):
        Datalist(write(tmp_path, numbered(3))).labeled(num_labeled)


def test_labeled_case_without_a_label_is_named(tmp_path):
    content = numbered(3)
    content["training"][1]["label"] = ""
    with pytest.raises(DataError, match=r"dataset\.json: the first 2 .*i1\.nii\.gz") as caught:
        Datalist(write(tmp_path, content)).labeled(2)
    assert "lower num_labeled" in str(caught.value)


@pytest.mark.parametrize(
    "splits, message",
    [
        ({"training": [0, 9]}, r"'training' the range \[0, 9\] and .*dataset\.json has 6 training cases: give a range"),
        ({"training": [-1, 3]}, r"'training' the range \[-1, 3\]"),
        ({"test": [4, 3]}, r"'test' the range \[4, 3\]"),
        ({"test": [3]}, r"'test' the range \[3\]"),
        ({"training": [0, 4], "test": [3, 6]}, r"position 3 of .*dataset\.json in two lists"),
        ({"train": [0, 3]}, r"splits names 'train'; the lists are training, unlabeled, validation, test"),
    ],
    ids=["beyond", "negative", "backwards", "one-bound", "overlap", "unknown"],
)
def test_splits_that_cannot_be_cut_are_quoted(tmp_path, splits, message):
    with pytest.raises(DataError, match=message):
        Datalist(write(tmp_path, numbered(6)), splits=splits)


# --- label files of unlabeled cases ---


def first_crops(dataset: Path, output: Path) -> list[torch.Tensor]:
    """Two batches of labeled and of unlabeled crops, through the loaders of train.json."""
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "train.json")
    parser.update(small(dataset, output))
    labeled = list(islice(parser.get_parsed_content("train#dataloader"), 2))
    unlabeled = list(islice(parser.get_parsed_content("train#unlabeled_dataloader"), 2))
    assert all("label" in batch for batch in labeled) and not any("label" in batch for batch in unlabeled)
    return [batch["image"] for batch in labeled + unlabeled] + [batch["label"] for batch in labeled]


def test_crops_are_identical_when_the_label_files_of_unlabeled_cases_are_deleted(tiny_copy, tmp_path):
    before = first_crops(tiny_copy, tmp_path)
    delete_unlabeled_labels(tiny_copy)
    assert len(list((tiny_copy / "labels").glob("training_*"))) == LABELED
    after = first_crops(tiny_copy, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_paths_out_of_the_folder_are_shown_without_dots_and_keep_the_name_of_a_link(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "MD5-123.nii.gz").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "case.nii.gz").symlink_to(store / "MD5-123.nii.gz")
    folder = write(tmp_path / "set", {"training": [{"image": "../images/case.nii.gz"}, {"image": "in/b.nii.gz"}]})
    files = [case["image"] for case in Datalist(folder).training]
    assert files == [str(tmp_path / "images" / "case.nii.gz"), str(folder / "in" / "b.nii.gz")]
