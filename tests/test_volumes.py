"""Tests of scripts/inference/outcomes.py: millilitres from oblique affines, and tables of a run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from conftest import oblique
from monai.data import MetaTensor

from scripts.data import LabelCoding
from scripts.inference import Outcomes


def mask(values: list, *, name: str = "a") -> MetaTensor:
    """Label values along the last axis, of voxels of 1 x 1.2 x 2 mm that lie obliquely."""
    voxels = torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, len(values[0]))
    return MetaTensor(voxels, affine=oblique((1.0, 1.2, 2.0)), meta={"filename_or_obj": f"/data/{name}.nii.gz"})


def table(folder: Path, name: str = "volumes.csv") -> list[list[str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def enter(folder: Path, coding: LabelCoding, *masks: MetaTensor, **options: object) -> None:
    outcomes = Outcomes(folder, label_coding=coding, save_volumes=True, **options)
    with outcomes.recording():
        for voxels in masks:
            outcomes.enter(outcomes.finished({"pred": voxels}))


def test_volume_is_the_number_of_voxels_times_the_determinant_of_the_affine(tmp_path):
    enter(tmp_path / "new", LabelCoding(2), mask([[0, 1, 1, 2, 1]]), class_names=["liver", "spleen"])
    assert table(tmp_path / "new") == [["a", "liver", "3", "0.0072"], ["a", "spleen", "1", "0.0024"]]


def test_overlapping_regions_are_measured_each_and_classes_are_numbered_by_default(tmp_path):
    enter(tmp_path, LabelCoding(2, regions=[[1, 2], [2]]), mask([[1, 1, 0], [0, 1, 0]]))
    assert table(tmp_path) == [["a", "1", "2", "0.0048"], ["a", "2", "1", "0.0024"]]


def test_tables_are_those_of_the_last_run_and_nothing_else_stays(tmp_path):
    enter(tmp_path, LabelCoding(1), mask([[1, 0]]), mask([[1, 1]], name="b"))
    enter(tmp_path, LabelCoding(1), mask([[0, 0]], name="b"))
    assert table(tmp_path) == [["b", "1", "0", "0.0"]]
    assert [path.name for path in tmp_path.iterdir()] == ["volumes.csv"]


def test_a_run_that_breaks_off_leaves_the_tables_of_what_it_did(tmp_path):
    outcomes = Outcomes(tmp_path)
    with pytest.raises(KeyboardInterrupt), outcomes.recording():
        outcomes.failed("/data/c.nii.gz", "no\nvolume: 心房")
        raise KeyboardInterrupt
    assert table(tmp_path, "failures.csv") == [["/data/c.nii.gz", "no\nvolume: 心房"]]


def test_another_number_of_names_than_of_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"class_names is \['liver'\]"):
        Outcomes(tmp_path, label_coding=LabelCoding(2), class_names=["liver"])
