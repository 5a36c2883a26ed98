"""Tests of scripts/inference/volumes.py: millilitres from oblique affines, and a table that runs complete."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from conftest import oblique
from monai.data import MetaTensor

from scripts.data import LabelCoding
from scripts.inference import SaveVolumesd


def mask(values: list, *, name: str = "a") -> MetaTensor:
    """Label values along the last axis, of voxels of 1 x 1.2 x 2 mm that lie obliquely."""
    voxels = torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, len(values[0]))
    return MetaTensor(voxels, affine=oblique((1.0, 1.2, 2.0)), meta={"filename_or_obj": f"/data/{name}.nii.gz"})


def table(folder: Path) -> list[tuple[str, str, int, float]]:
    with (folder / "volumes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(row["case"], row["class"], int(row["voxels"]), float(row["millilitres"])) for row in rows]


def test_volume_is_the_number_of_voxels_times_the_determinant_of_the_affine(tmp_path):
    data = {"pred": mask([[0, 1, 1, 2, 1]])}
    result = SaveVolumesd("pred", LabelCoding(2), tmp_path / "new", ["liver", "spleen"])(data)
    assert result["pred"] is data["pred"]
    assert table(tmp_path / "new") == [("a", "liver", 3, 0.0072), ("a", "spleen", 1, 0.0024)]


def test_overlapping_regions_are_measured_each_and_classes_are_numbered_by_default(tmp_path):
    coding = LabelCoding(2, regions=[[1, 2], [2]])
    SaveVolumesd("pred", coding, tmp_path)({"pred": mask([[1, 1, 0], [0, 1, 0]])})
    assert table(tmp_path) == [("a", "1", 2, 0.0048), ("a", "2", 1, 0.0024)]


def test_a_case_that_comes_again_replaces_its_rows_and_the_others_stay(tmp_path):
    for name, values in (("a", [1, 0]), ("b", [1, 1]), ("a", [0, 0])):
        SaveVolumesd("pred", LabelCoding(1), tmp_path)({"pred": mask([values], name=name)})
    assert table(tmp_path) == [("b", "1", 2, 0.0048), ("a", "1", 0, 0.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["volumes.csv"]


def test_another_number_of_names_than_of_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"class_names is \['liver'\]; there must be 2, one for each class"):
        SaveVolumesd("pred", LabelCoding(2), tmp_path, ["liver"])
