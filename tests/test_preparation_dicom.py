"""Tests of tools/preparation/dicom.py: series as scanners and archives leave them, against ITK and by hand."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from originals import write_dicom, write_frames

from scripts.data import DataError
from tools.preparation.volumes import load_volume

SHAPE = (9, 8, 7)
ANGLE = np.deg2rad(7)
# Direction cosines with more decimals than the 16 characters of the standard.
OBLIQUE = (1, 0, 0, 0, np.cos(ANGLE), np.sin(ANGLE))


def numbers(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, shape)


def by_itk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array (columns, rows, slices) and affine (4, 4), mm, to RAS, as ITK's reader has them."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]) @ lps


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_first": True},
        {"number": lambda k: 1},
        {"number": lambda k: k // 2 + 1},
        {"number": lambda k: (k * 3) % 7 + 1},
        {"directions": OBLIQUE},
        {"directions": (0, 1, 0, 0, 0, -1)},
    ],
    ids=["plain", "head-first", "one-number", "two-acquisitions", "interleaved", "long-decimals", "sagittal"],
)
def test_slices_are_in_the_order_of_their_places_as_in_itk(tmp_path, options):
    affine = write_dicom(tmp_path, numbers(), **options)
    array, found = load_volume(tmp_path)
    assert np.array_equal(array, numbers())
    np.testing.assert_allclose(found, affine, atol=1e-5)
    reference, its_affine = by_itk(tmp_path)
    assert np.array_equal(array, reference)
    np.testing.assert_allclose(found, its_affine, atol=1e-5)


def test_one_file_of_many_frames_is_a_volume_whatever_their_order(tmp_path):
    affine = write_dicom(tmp_path / "series", numbers())
    write_frames(tmp_path / "frames" / "a.dcm", numbers(), order=[3, 0, 6, 1, 5, 2, 4])
    for path in (tmp_path / "frames", tmp_path / "frames" / "a.dcm"):
        array, found = load_volume(path)
        assert np.array_equal(array, numbers())
        np.testing.assert_allclose(found, affine)


def test_slices_of_a_tilted_gantry_keep_their_places_and_are_said_to_lean(tmp_path, caplog):
    affine = write_dicom(tmp_path, numbers(), step=(0.0, 0.5, 2.5))
    with caplog.at_level(logging.WARNING):
        array, found = load_volume(tmp_path)
    assert np.array_equal(array, numbers())
    np.testing.assert_allclose(found, affine, atol=1e-6)
    assert "11.3 degrees" in caplog.text  # atan(0.5 / 2.5)


def test_slices_exported_twice_count_once(tmp_path):
    affine = write_dicom(tmp_path, numbers())
    for path in list(tmp_path.iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    array, found = load_volume(tmp_path)
    assert np.array_equal(array, numbers())
    np.testing.assert_allclose(found, affine)


def test_every_slice_has_its_own_scale(tmp_path):
    write_dicom(tmp_path, numbers())
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.RescaleSlope, dataset.RescaleIntercept = dataset.InstanceNumber, 0
        dataset.save_as(path)
    stored = numbers() + 1024
    assert np.array_equal(load_volume(tmp_path)[0], stored * np.arange(1, 8))


def second(folder: Path, **options) -> None:
    """Another stack of the same series beside the first."""
    series = str(pydicom.dcmread(next(folder.iterdir())).SeriesInstanceUID)
    write_dicom(folder / "new", numbers(), series=series, **options)
    for path in list((folder / "new").iterdir()):
        path.rename(folder / f"b{path.name}")
    (folder / "new").rmdir()


@pytest.mark.parametrize(
    "tags, word", [({"AcquisitionNumber": 2}, "acquisitions"), ({"EchoTime": 5}, "echoes"), ({}, "twice")]
)
def test_two_volumes_in_one_series_are_refused_by_what_tells_them_apart(tmp_path, tags, word):
    write_dicom(tmp_path, numbers())
    second(tmp_path, tags=tags)
    with pytest.raises(DataError, match=word):
        load_volume(tmp_path)


def test_series_with_a_missing_slice_names_the_files_beside_the_gap(tmp_path):
    write_dicom(tmp_path, numbers())
    (tmp_path / "1-021.dcm").unlink()  # slice 3
    with pytest.raises(DataError, match="2.50 to 5.00 mm .*1-014.dcm and 1-028.dcm"):
        load_volume(tmp_path)


def spoil(folder: Path, kind: str) -> None:
    path = folder / "1-007.dcm"
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:-60])
        return
    dataset = pydicom.dcmread(path)
    if kind == "localizer":
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    elif kind == "zoomed":
        dataset.PixelSpacing = [0.45, 0.4]
    elif kind == "moved":
        dataset.ImagePositionPatient = [-11.0, 9.0, 32.5]
    elif kind == "nowhere":
        del dataset.ImagePositionPatient
    elif kind == "contours":
        dataset.Modality = "RTSTRUCT"
        del dataset.Rows
    elif kind == "colours":
        dataset.SamplesPerPixel = 3
    dataset.save_as(path)


@pytest.mark.parametrize(
    "kind, value",
    [
        ("damaged", "1-007.dcm"),
        ("localizer", "orientations"),
        ("zoomed", "0.45"),
        ("moved", "shifted"),
        ("nowhere", "ImagePositionPatient"),
        ("contours", "RTSTRUCT"),
        ("colours", "colours"),
    ],
)
def test_what_is_no_regular_stack_is_refused_with_what_is_wrong(tmp_path, kind, value):
    write_dicom(tmp_path, numbers())
    spoil(tmp_path, kind)
    with pytest.raises(DataError, match=value):
        load_volume(tmp_path)


def test_rounding_of_the_places_is_no_gap(tmp_path):
    write_dicom(tmp_path, numbers(), spacing=(0.8, 0.9, 2.3333333))
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = [round(float(v), 1) for v in dataset.ImagePositionPatient]
        dataset.save_as(path)
    assert load_volume(tmp_path)[1][2, 2] == pytest.approx(2.333, abs=0.02)
