"""Tests of scripts/inference/continuing.py: what counts as finished, by content and whatever the dates."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from scripts.data import DataError, LabelCoding
from scripts.inference import InferenceRecord
from scripts.inference.outputs import facts_of

SETTINGS = {"spacing": [1.0, 1.0, 1.0], "flip_axes": [], "largest_component": False}
NAMES = ("a.nii.gz", "b.nii", "c.1.nii.gz")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images and weights."""
    (tmp_path / "images").mkdir()
    for name in NAMES:
        (tmp_path / "images" / name).write_text(f"image {name}")
    (tmp_path / "model.pt").write_text("weights")
    return tmp_path


def record(folder: Path, **changes) -> InferenceRecord:
    options = {"weights": str(folder / "model.pt"), "model": SETTINGS, "label_coding": LabelCoding(1), **changes}
    return InferenceRecord(folder / "masks", **options)


def item(*files: Path) -> dict:
    """What the evaluator hands on of a case with these files."""
    mask = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4), meta={"filename_or_obj": str(files[0])})
    facts = json.dumps([facts_of(file) for file in files])
    return {"pred": mask, "image": MetaTensor([0], meta={"files": facts})}


def cases(folder: Path) -> list[dict]:
    return [{"image": str(folder / "images" / name)} for name in NAMES]


def left(folder: Path, **changes) -> list[str]:
    """The names that a run would segment, and does not."""
    return [Path(case["image"]).name for case in record(folder, **changes).unfinished(cases(folder))]


def segment(folder: Path, *names: str, **changes) -> list[str]:
    """A run that segments those of ``names`` that are left, and fails at the others; returns what was left."""
    kept = record(folder, **changes)
    remaining = [Path(case["image"]).name for case in kept.unfinished(cases(folder))]

    def step(engine: Engine, name: str) -> list[dict]:
        if name not in names:
            return []
        (folder / "masks" / f"{name.removesuffix('.gz').removesuffix('.nii')}_seg.nii.gz").write_text(f"mask {name}")
        return [item(folder / "images" / name)]

    run(kept, step, remaining)
    return remaining


def run(kept: InferenceRecord, step: Callable, remaining: list) -> None:
    """As TolerantEvaluator does it."""
    engine = Engine(step)
    kept.attach(engine)
    with kept.recording():
        if remaining:
            engine.run(remaining)


def content(folder: Path) -> dict:
    return json.loads((folder / "masks" / "inference_settings.json").read_text())


def test_a_run_records_settings_and_the_size_and_digest_of_weights_and_images(folder):
    assert segment(folder, "b.nii") == list(NAMES)
    written = content(folder)
    assert written["settings"] == SETTINGS
    for entry, file in ((written["weights"], "model.pt"), (written["cases"]["b"]["files"], "images/b.nii")):
        data = (folder / file).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        assert entry == [{"path": str(folder / file), "bytes": len(data), "sha256": digest}]
    assert list(written["cases"]) == ["b"]


def test_second_run_leaves_out_what_is_finished_and_says_so(folder, caplog):
    segment(folder, "a.nii.gz", "c.1.nii.gz")
    (folder / "masks" / "b_distance.nii.gz").touch()  # the mask comes last: this case was broken off
    with caplog.at_level(logging.INFO):
        assert segment(folder, "b.nii") == ["b.nii"]
    assert "2 of 3 cases are finished" in caplog.text and "--overwrite true" in caplog.text
    assert left(folder) == []


@pytest.mark.parametrize("date", [1, 4_000_000_000])
@pytest.mark.parametrize("changed, expected", [("images/b.nii", ["b.nii"]), ("model.pt", list(NAMES))])
def test_an_image_or_weights_replaced_by_a_file_of_any_date_are_noticed(folder, changed, expected, date):
    segment(folder, *NAMES)
    size = (folder / changed).stat().st_size
    (folder / changed).write_bytes(b"n" * size)  # as large as before
    os.utime(folder / changed, (date, date))
    assert segment(folder) == expected
    assert left(folder) == expected  # until it has been made anew
    assert segment(folder, *NAMES) == expected
    assert left(folder) == []


def test_files_that_have_only_been_touched_or_moved_count_as_the_same(folder):
    segment(folder, *NAMES)
    for path in (*(folder / "images").iterdir(), folder / "model.pt"):
        os.utime(path, (4_000_000_000, 4_000_000_000))
    assert left(folder) == []
    (folder / "images").rename(folder / "moved")
    (folder / "images").symlink_to("moved")
    assert left(folder) == []


def test_a_mask_that_is_gone_is_made_again(folder):
    segment(folder, *NAMES)
    (folder / "masks" / "a_seg.nii.gz").unlink()
    assert left(folder) == ["a.nii.gz"]


def test_the_mask_of_another_image_of_the_same_name_is_not_written_over(folder):
    segment(folder, *NAMES)
    (folder / "other").mkdir()
    (folder / "other" / "a.nii.gz").write_text("another patient")
    other = [{"image": str(folder / "other" / "a.nii.gz")}]
    with pytest.raises(DataError, match=r"a_seg.nii.gz was made of .*/images/a.nii.gz and not of .*/other/a.nii.gz"):
        record(folder).unfinished(other)
    assert record(folder, overwrite=True).unfinished(other) == other


def test_every_file_of_a_case_and_every_member_of_an_ensemble_counts(folder):
    for name in ("d_0000", "d_0001", "fold1"):
        (folder / name).write_text(name)
    case = [{"image": [str(folder / "d_0000"), str(folder / "d_0001")]}]
    weights = [str(folder / "model.pt"), str(folder / "fold1")]

    def again() -> list[dict]:
        kept = record(folder, weights=weights)
        remaining = kept.unfinished(case)
        (folder / "masks" / "d_0000_seg.nii.gz").touch()
        run(kept, lambda engine, entry: [item(*map(Path, entry["image"]))], remaining)
        return remaining

    assert again() == case and again() == []
    (folder / "d_0001").write_text("changed")
    assert again() == case and again() == []
    (folder / "fold1").write_text("changed")
    assert again() == case and again() == []


def test_masks_without_a_record_are_made_again(folder):
    (folder / "masks").mkdir()
    (folder / "masks" / "a_seg.nii.gz").touch()
    assert left(folder) == list(NAMES)
    assert left(folder) == list(NAMES)


@pytest.mark.parametrize("text", ['{"spa', "[]", '{"spacing": null}'], ids=["cut off", "list", "former form"])
def test_a_record_that_does_not_say_what_is_needed_counts_as_none(folder, text):
    segment(folder, *NAMES)
    (folder / "masks" / "inference_settings.json").write_text(text)
    assert left(folder) == list(NAMES)


@pytest.mark.parametrize("overwrite", [True, "true"])
def test_overwrite_makes_all_again_and_an_overwriting_run_can_be_continued(folder, overwrite):
    segment(folder, *NAMES)
    assert segment(folder, "a.nii.gz", overwrite=overwrite) == list(NAMES)
    assert left(folder) == ["b.nii", "c.1.nii.gz"]


def test_other_settings_are_refused_with_what_changed(folder):
    segment(folder, "a.nii.gz")
    changed = {**SETTINGS, "flip_axes": [0]}
    with pytest.raises(DataError, match=r"other settings \(flip_axes was \[\] and is \[0\]\).*overwrite to true"):
        left(folder, model=changed)
    assert left(folder, model=changed, overwrite=True) == list(NAMES)
    assert left(folder, model=changed) == list(NAMES)


def test_masks_beside_their_images_are_refused(folder):
    with pytest.raises(DataError, match="is the folder of the images"):
        options = {"weights": str(folder / "model.pt"), "model": {}, "label_coding": LabelCoding(1)}
        InferenceRecord(folder / "images", **options).unfinished(cases(folder))


def test_two_cases_with_one_mask_are_refused(folder):
    twice = [{"image": str(folder / "images" / "a.nii.gz")}, {"image": str(folder / "elsewhere" / "a.nii.gz")}]
    with pytest.raises(DataError, match=r"images/a.nii.gz and .*elsewhere/a.nii.gz would have the same mask"):
        record(folder).unfinished(twice)


def test_a_run_that_ended_before_its_first_mask_hinders_no_other(folder):
    left(folder)
    changed = {**SETTINGS, "flip_axes": [0]}
    assert left(folder, model=changed) == list(NAMES)
    assert content(folder)["settings"] == changed
