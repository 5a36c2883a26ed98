"""Tests of scripts/inference/writer.py: a file appears whole, and a failure leaves nothing."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from conftest import blob, oblique, save
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, SaveImage, Spacingd

from scripts.data import NiftiReader

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


# --- the place of the image, for programs that go by the qform and by the units ---


def moved(affine: np.ndarray) -> np.ndarray:
    """``affine``, 10 mm further to the right, as a program leaves the sform that registers a scan to another."""
    return affine + np.outer((10.0, -5.0, 3.0, 0.0), (0, 0, 0, 1))


def sheared(affine: np.ndarray) -> np.ndarray:
    """``affine`` with axes that are not at right angles, which a qform cannot say."""
    return np.vstack([affine[0] + 0.02 * affine[1], affine[1:]])


HEADERS = {
    "sform moved": {"sform": (moved, 2), "qform": (lambda affine: affine, 1)},
    "sheared": {"sform": (sheared, 2), "qform": (lambda affine: affine, 1)},
    "qform alone": {"sform": (moved, 0), "qform": (lambda affine: affine, 2)},
    "sform alone": {"sform": (moved, 4), "qform": (lambda affine: affine, 0)},
    "neither": {"sform": (moved, 0), "qform": (lambda affine: affine, 0)},
    "metres": {"sform": (lambda affine: affine, 1), "qform": (lambda affine: affine, 1), "units": "meter"},
    "micrometres": {"sform": (lambda affine: affine, 1), "qform": (lambda affine: affine, 1), "units": "micron"},
}


@pytest.mark.parametrize("name", HEADERS)
def test_mask_lies_on_its_image_in_nibabel_and_in_programs_that_stand_on_itk(tmp_path, name):
    itk = pytest.importorskip("SimpleITK")
    affine = oblique((1.0, 1.2, 2.0))
    image = nibabel.Nifti1Image(blob((24, 22, 20), seed=0)[0], None)
    image.header.set_zooms((1.0, 1.2, 2.0))
    for form in ("qform", "sform"):
        change, code = HEADERS[name][form]
        getattr(image, f"set_{form}")(change(affine), code=code)
    image.header.set_xyzt_units(HEADERS[name].get("units", "mm"))
    nibabel.save(image, tmp_path / "a.nii.gz")
    preparation = Compose(
        [
            LoadImaged("image", reader=NiftiReader),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", (1.5, 1.5, 1.5)),
        ]
    )
    batch = list_data_collate([preparation({"image": str(tmp_path / "a.nii.gz")})])
    batch["pred"] = (batch["image"] > 200).float()
    (item,) = decollate_batch(batch)
    item = Invertd("pred", transform=preparation, orig_keys="image", nearest_interp=True)(item)
    saver(tmp_path, output_dtype=np.uint8)(item["pred"])

    a, mask = (nibabel.load(tmp_path / file) for file in ("a.nii.gz", "a_seg.nii.gz"))
    assert mask.header["qform_code"] == a.header["qform_code"] and mask.header["sform_code"] == a.header["sform_code"]
    assert mask.header.get_xyzt_units()[0] == a.header.get_xyzt_units()[0]
    assert mask.shape == a.shape and np.asarray(mask.dataobj).any()
    np.testing.assert_allclose(mask.affine, a.affine, atol=1e-5)
    theirs, ours = (itk.ReadImage(str(tmp_path / file)) for file in ("a.nii.gz", "a_seg.nii.gz"))
    for place in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, place)(), getattr(theirs, place)(), atol=1e-5)


def test_map_on_another_grid_than_its_image_gets_its_own_affine(tmp_path):
    save(blob((8, 8, 8), seed=0)[0], oblique((1.0, 1.0, 1.0)), tmp_path / "a.nii.gz")
    item = LoadImaged("image", reader=NiftiReader, ensure_channel_first=True)({"image": str(tmp_path / "a.nii.gz")})
    coarse = Spacingd("image", (2.0, 2.0, 2.0))(item)["image"]
    saver(tmp_path)(coarse)
    np.testing.assert_allclose(nibabel.load(tmp_path / "a_seg.nii.gz").affine, coarse.affine, atol=1e-5)
