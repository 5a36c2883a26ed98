"""Tests of scripts/inference/cases.py and outputs.py: what is segmented, and where its outputs go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.data import DataError
from scripts.inference import cases_of, root_of
from scripts.inference.outputs import name_of, output_path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images at the top, in subfolders, hidden, and of masks; beside files that are none."""
    for name in (
        *("top.nii.gz", "one/ct.nii.gz", "two/deep/ct.nii", "two/deep/notes.txt"),
        *(".hidden/ct.nii.gz", "one/.ct.nii.gz", "masks/top_seg.nii.gz"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "two" / "around").symlink_to(tmp_path)
    return tmp_path


def names(cases: list[dict], folder: Path) -> list:
    return [
        (
            str(Path(case["image"]).relative_to(folder))
            if isinstance(case["image"], str)
            else [Path(path).name for path in case["image"]]
        )
        for case in cases
    ]


def test_a_folder_is_taken_with_its_subfolders_but_those_of_masks_and_hidden_ones(folder):
    cases = cases_of(str(folder), output_dir=folder / "masks")
    assert names(cases, folder) == ["top.nii.gz", "one/ct.nii.gz", "two/deep/ct.nii"]
    assert root_of(str(folder)) == str(folder)


def test_outputs_keep_the_place_of_their_image_so_that_equal_names_do_not_meet(folder):
    for image, name in (("top.nii.gz", "top"), ("one/ct.nii.gz", "one/ct"), ("two/deep/ct.nii", "two/deep/ct")):
        assert name_of(folder / image, folder) == name
        assert output_path(folder / image, "seg", output_dir="out", root=folder) == Path(f"out/{name}_seg.nii.gz")
    # An image elsewhere leads nowhere else.
    assert output_path("/data/x.nii.gz", "seg", output_dir="out", root=folder) == Path("out/x_seg.nii.gz")
    assert name_of("/data/x.nii.gz") == "x"


def test_one_file_is_one_case(folder):
    file = str(folder / "one" / "ct.nii.gz")
    assert cases_of(file) == [{"image": file}]
    assert root_of(file) == str(folder / "one")


def test_the_other_channels_of_one_file_are_found_beside_it(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        (tmp_path / f"{name}.nii.gz").touch()
    for given in ("a_0000", "a_0001"):
        cases = cases_of(str(tmp_path / f"{given}.nii.gz"), in_channels=2)
        assert names(cases, tmp_path) == [["a_0000.nii.gz", "a_0001.nii.gz"]]
    (tmp_path / "four_axes.nii.gz").touch()
    assert names(cases_of(str(tmp_path / "four_axes.nii.gz"), in_channels=2), tmp_path) == ["four_axes.nii.gz"]


@pytest.mark.parametrize("form", ["txt", "json", "list"])
def test_a_list_may_have_several_folders_and_several_channels(folder, form):
    entries = ["one/ct.nii.gz", "two/deep/ct.nii"]
    if form == "txt":
        source = folder / "cases.txt"
        source.write_text("one/ct.nii.gz\n\n  two/deep/ct.nii\n")
    elif form == "json":
        source = folder / "cases.json"
        source.write_text(json.dumps([entries[0], {"image": entries[1]}, ["one/a.nii.gz", "one/b.nii.gz"]]))
    else:
        source = [str(folder / entry) for entry in entries]
    cases = cases_of(source)
    assert names(cases[:2], folder) == entries
    assert names(cases[2:], folder) == ([["a.nii.gz", "b.nii.gz"]] if form == "json" else [])
    assert root_of(source) == str(folder)


@pytest.mark.parametrize(
    "source, message",
    [
        ("gone", "gone is not a folder"),
        ("two/deep/notes.csv", "notes.csv; it is a folder of NIfTI images, one such image"),
        ("two/deep/notes.txt", "notes.txt lists no image"),
        ("broken.json", "broken.json cannot be read as a list"),
        ("object.json", "object.json is no list"),
        ("number.json", "number.json lists 3"),
        ("two/deep/empty", "empty holds no .nii.gz or .nii file"),
    ],
)
def test_what_is_none_of_these_is_refused(folder, source, message):
    (folder / "two" / "deep" / "notes.csv").touch()
    (folder / "two" / "deep" / "empty").mkdir()
    (folder / "broken.json").write_text("[")
    (folder / "object.json").write_text("{}")
    (folder / "number.json").write_text("[3]")
    with pytest.raises(DataError, match=message):
        cases_of(str(folder / source))
    root_of(str(folder / source))  # says nothing itself
