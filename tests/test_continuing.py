"""Tests of scripts/inference/continuing.py: what counts as finished, by files that are older and newer."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from scripts.data import DataError
from scripts.inference import unfinished

SETTINGS = {"spacing": [1.0, 1.0, 1.0], "flip_axes": [], "largest_component": False}
NAMES = ("a.nii.gz", "b.nii", "c.1.nii.gz")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images and weights, written at 100 s."""
    (tmp_path / "images").mkdir()
    for name in NAMES:
        (tmp_path / "images" / name).touch()
    (tmp_path / "model.pt").touch()
    for path in (*(tmp_path / "images").iterdir(), tmp_path / "model.pt"):
        os.utime(path, (100, 100))
    return tmp_path


def left(folder: Path, *, at: float | None = None, **changes) -> list[str]:
    """The names that are left; ``at`` sets the time of the record that the call may have written."""
    options = {"weights": str(folder / "model.pt"), "settings": SETTINGS, **changes}
    cases = [{"image": str(folder / "images" / name)} for name in NAMES]
    names = [Path(case["image"]).name for case in unfinished(cases, output_dir=folder / "masks", **options)]
    if at is not None:
        os.utime(folder / "masks" / "inference_settings.json", (at, at))
    return names


def write_mask(folder: Path, name: str, *, at: float) -> None:
    (folder / "masks" / name).touch()
    os.utime(folder / "masks" / name, (at, at))


def test_first_run_has_all_cases_and_records_its_settings(folder):
    assert left(folder) == list(NAMES)
    assert json.loads((folder / "masks" / "inference_settings.json").read_text()) == SETTINGS


def test_second_run_leaves_out_what_is_finished_and_says_so(folder, caplog):
    left(folder, at=200)
    write_mask(folder, "a_seg.nii.gz", at=300)
    write_mask(folder, "c.1_seg.nii.gz", at=300)
    write_mask(folder, "b_distance.nii.gz", at=300)  # the mask comes last: this case was broken off
    with caplog.at_level(logging.INFO):
        assert left(folder) == ["b.nii"]
    assert "2 of 3 cases are finished" in caplog.text and "--overwrite true" in caplog.text
    write_mask(folder, "b_seg.nii.gz", at=300)
    assert left(folder) == []


@pytest.mark.parametrize("newer, expected", [("images/b.nii", ["b.nii"]), ("model.pt", list(NAMES))])
def test_a_mask_older_than_its_image_or_the_weights_is_made_again(folder, newer, expected):
    left(folder, at=200)
    for name in ("a", "b", "c.1"):
        write_mask(folder, f"{name}_seg.nii.gz", at=300)
    os.utime(folder / newer, (400, 400))
    assert left(folder) == expected


def test_any_newer_member_of_an_ensemble_counts(folder):
    weights = [str(folder / "model.pt"), str(folder / "other.pt")]
    (folder / "other.pt").touch()
    os.utime(folder / "other.pt", (400, 400))
    left(folder, at=200, weights=weights)
    write_mask(folder, "a_seg.nii.gz", at=300)
    assert "a.nii.gz" in left(folder, weights=weights)
    write_mask(folder, "a_seg.nii.gz", at=500)
    assert "a.nii.gz" not in left(folder, weights=weights)


def test_masks_without_a_record_of_their_settings_are_made_again(folder):
    (folder / "masks").mkdir()
    write_mask(folder, "a_seg.nii.gz", at=300)
    assert left(folder) == list(NAMES)
    # The record is newer than the mask, so the next run makes it as well.
    assert left(folder) == list(NAMES)


@pytest.mark.parametrize("overwrite", [True, "true"])
def test_overwrite_makes_all_again_and_an_overwriting_run_can_be_continued(folder, overwrite):
    left(folder, at=200)
    for name in ("a", "b", "c.1"):
        write_mask(folder, f"{name}_seg.nii.gz", at=300)
    assert left(folder, overwrite=overwrite, at=400) == list(NAMES)
    write_mask(folder, "a_seg.nii.gz", at=500)
    assert left(folder) == ["b.nii", "c.1.nii.gz"]


def test_other_settings_are_refused_with_what_changed(folder):
    left(folder)
    write_mask(folder, "a_seg.nii.gz", at=50)
    changed = {**SETTINGS, "flip_axes": [0]}
    with pytest.raises(DataError, match=r"other settings \(flip_axes was \[\] and is \[0\]\).*overwrite to true"):
        left(folder, settings=changed)
    assert left(folder, settings=changed, overwrite=True) == list(NAMES)
    assert left(folder, settings=changed) == list(NAMES)


def test_settings_from_the_command_line_are_the_same_as_from_json(folder):
    left(folder, settings={**SETTINGS, "largest_component": "true"})
    write_mask(folder, "a_seg.nii.gz", at=50)
    assert left(folder, settings={**SETTINGS, "largest_component": True, "spacing": (1.0, 1.0, 1.0)}) == list(NAMES)


def test_a_record_that_was_cut_off_counts_as_none(folder):
    left(folder, at=200)
    write_mask(folder, "a_seg.nii.gz", at=300)
    (folder / "masks" / "inference_settings.json").write_text('{"spa')
    assert left(folder) == list(NAMES)


def test_masks_beside_their_images_are_refused(folder):
    cases = [{"image": str(folder / "images" / "a.nii.gz")}]
    with pytest.raises(DataError, match="is the folder of the images: choose another"):
        unfinished(cases, output_dir=folder / "images", weights=str(folder / "model.pt"), settings={})


def test_a_run_that_ended_before_its_first_mask_hinders_no_other(folder):
    left(folder)
    changed = {**SETTINGS, "flip_axes": [0]}
    assert left(folder, settings=changed) == list(NAMES)
    assert json.loads((folder / "masks" / "inference_settings.json").read_text()) == changed
