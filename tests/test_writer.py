"""Tests of scripts/inference/writer.py: a file appears whole, and a failure leaves nothing."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from conftest import oblique
from monai.data import MetaTensor
from monai.transforms import SaveImage

WRITER = "scripts.inference.NiftiWriter"


def volume(*, name: str = "a.nii.gz") -> MetaTensor:
    voxels = torch.arange(24, dtype=torch.uint8).reshape(1, 2, 3, 4)
    return MetaTensor(voxels, affine=oblique((1.0, 1.2, 2.0)), meta={"filename_or_obj": f"/data/{name}"})


def saver(folder, *, ending=".nii.gz", **options) -> SaveImage:
    return SaveImage(
        folder, "seg", ending, separate_folder=False, resample=False, print_log=False, writer=WRITER, **options
    )


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_file_is_that_of_monais_writer_and_alone(tmp_path, ending):
    saver(tmp_path / "ours", ending=ending)(volume())
    SaveImage(tmp_path / "monai", "seg", ending, separate_folder=False, resample=False, print_log=False)(volume())
    (ours,) = (tmp_path / "ours").iterdir()
    (theirs,) = (tmp_path / "monai").iterdir()
    assert ours.name == theirs.name == f"a_seg{ending}"
    ours, theirs = nibabel.load(ours), nibabel.load(theirs)
    assert ours.header == theirs.header
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))


def test_only_a_hidden_file_is_in_the_folder_until_the_mask_is_complete(tmp_path, monkeypatch):
    seen = []
    save = nibabel.save

    def watched(image, path):
        save(image, path)
        seen.append([file.name for file in tmp_path.iterdir()])

    monkeypatch.setattr("nibabel.save", watched)
    saver(tmp_path)(volume())
    assert len(seen) == 1 and len(seen[0]) == 1 and seen[0][0].startswith(".writing-")
    assert [file.name for file in tmp_path.iterdir()] == ["a_seg.nii.gz"]


def test_writing_that_breaks_off_keeps_the_older_file_and_leaves_no_other(tmp_path, monkeypatch):
    (tmp_path / "a_seg.nii.gz").write_text("of an earlier run")

    def full(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nibabel.save", full)
    with pytest.raises(RuntimeError, match="No space left on device"):
        saver(tmp_path)(volume())
    assert [file.name for file in tmp_path.iterdir()] == ["a_seg.nii.gz"]
    assert (tmp_path / "a_seg.nii.gz").read_text() == "of an earlier run"


def test_a_name_as_long_as_a_file_name_can_be_is_written(tmp_path):
    name = "ä" * 100 + "b" * 43  # 243 bytes, and 12 for _seg.nii.gz and the point
    saver(tmp_path)(volume(name=f"{name}.nii.gz"))
    assert [file.name for file in tmp_path.iterdir()] == [f"{name}_seg.nii.gz"]
