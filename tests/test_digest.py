"""Tests of scripts/data/digest.py: what changes the digest of a data set, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from conftest import save

from scripts.data.digest import ENDS, data_digest


def digest(*cases: dict) -> str:
    return data_digest({"labeled": cases})["labeled"]["digest"]


def volume(path: Path, value: int = 0, *, at: int = 0) -> str:
    """A file whose voxel number ``at``, in the order of the file, is ``value``."""
    voxels = np.zeros(60**3, np.uint8)
    voxels[at] = value
    return save(voxels.reshape(60, 60, 60, order="F"), np.eye(4), path)


def test_a_single_voxel_changes_the_digest_and_a_new_folder_does_not(tmp_path):
    first = volume(tmp_path / "a" / "x.nii.gz")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved, changed = str(tmp_path / "b" / "x.nii.gz"), volume(tmp_path / "c" / "x.nii.gz", 1, at=100_000)
    assert digest({"image": first}) == digest({"image": moved}) != digest({"image": changed})


def test_order_label_and_number_of_cases_count(tmp_path):
    a, b = volume(tmp_path / "a.nii.gz"), volume(tmp_path / "b.nii.gz", 1)
    found = [
        digest({"image": a}, {"image": b}),
        digest({"image": b}, {"image": a}),
        digest({"image": a, "label": b}),
        digest({"image": a}),
        digest({"image": [a, b], "label": a}),
    ]
    assert len(set(found)) == 5
    assert data_digest({"validation": []})["validation"]["cases"] == 0


def test_of_an_uncompressed_file_the_ends_count(tmp_path):
    size = 60**3
    assert size > 2 * ENDS
    plain = digest({"image": volume(tmp_path / "a.nii")})
    assert digest({"image": volume(tmp_path / "b.nii", 1)}) != plain
    assert digest({"image": volume(tmp_path / "c.nii", 1, at=size - 1)}) != plain
    assert digest({"image": volume(tmp_path / "d.nii", 1, at=size // 2)}) == plain


def test_a_file_that_is_not_there_is_no_error(tmp_path):
    assert digest({"image": str(tmp_path / "missing.nii.gz")}) == digest({"image": None})
