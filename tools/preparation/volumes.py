"""Volumes: finds NIfTI, NRRD and DICOM volumes in a folder, reads them and writes NIfTI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data import NrrdReader

from scripts.data import DataError
from scripts.data.folder import NIFTI_SUFFIXES
from scripts.data.nifti import open_nifti

from .dicom import DICOM_SUFFIXES, dicom_folders, is_dicom, load_series
from .packages import need_package

NRRD_SUFFIXES = (".seg.nrrd", ".nrrd")  # the longer first: it is a part of the name, too
# The largest value of a label that is written, and the name of all values that a label_map does not name.
MOST_LABEL, OTHERS = 255, "others"
LISTED = 5
LPS_SPACES = ("left-posterior-superior", "lps")
SPACES = ("left-posterior-superior", "right-anterior-superior", "lps", "ras")


class NoVolumeError(DataError):
    """A folder holds no volume."""


def volume_name(path: Path) -> str:
    """File name without its suffix; of a DICOM series, the folder's name."""
    for suffix in (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *DICOM_SUFFIXES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def structures_in(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, sorted, which may be masks of one structure each; none of what is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_nifti(path) and not path.name.startswith("."))


def volumes_in(folder: str | Path, *, argument: str, labels: bool = False) -> list[Path]:
    """The volumes of a folder, sorted: NIfTI and NRRD files, and each subfolder that holds one DICOM series.

    Hidden files are left out. A subfolder is searched to any depth, so that the folders of study and series that
    archives hand out need not be moved; a series is known by the name of its first-level folder.

    Args:
        folder: to look in.
        argument: the name of the command's argument that gave the folder, for the messages.
        labels: also takes single DICOM files, and subfolders with one mask per structure.

    Raises:
        DataError: when the folder is missing or holds no volume, or a subfolder holds more than one DICOM series.
    """
    folder = Path(str(folder))
    if not folder.is_dir():
        raise DataError(f"{argument} is {str(folder)!r}, which is not a folder: give an existing one.")
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if series := dicom_folders(path):
                if len(series) > 1:
                    raise DataError(
                        f"{path} holds DICOM files in {len(series)} folders ({series[0]}, {series[1]}, ...): "
                        "keep one series per case."
                    )
                found.append(path)
            elif labels and structures_in(path):
                found.append(path)
        elif labels and is_dicom(path):
            found.append(path)
        elif path.name.lower().endswith((*NIFTI_SUFFIXES, *NRRD_SUFFIXES)):
            found.append(path)
    if not found:
        raise NoVolumeError(
            f"{argument} {folder} holds no volume: expected are .nii.gz, .nii and .nrrd files, or subfolders with one "
            "DICOM series each."
        )
    return found


def load_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a NIfTI or NRRD file, or the folder of a DICOM series.

    Returns:
        array (H, W, D), or (H, W, D, channels) of a 4D NIfTI file, in the type of a NIfTI file; of scaled NIfTI,
        NRRD and DICOM float, for CT in HU. affine (4, 4), float64, mm, voxel to RAS.

    Raises:
        DataError: when the file cannot be read or is not a volume, a package that reads the format is missing, or the
            slices of a series do not lie on one regular grid.
    """
    path = Path(path)
    if path.is_dir() and not is_nifti(path):
        folders = dicom_folders(path)
        if len(folders) != 1:
            raise DataError(f"{path} holds DICOM files in {len(folders)} folders: expected is one series.")
        path = folders[0]
    if (path.is_dir() and not is_nifti(path)) or path.name.lower().endswith(DICOM_SUFFIXES):  # a file of many frames
        series = load_series(path)
        return series.array, series.affine
    if not path.name.lower().endswith(NRRD_SUFFIXES):
        return _load_nifti(path)
    need_package("nrrd", "pynrrd", path)
    try:
        opened: Any = NrrdReader()  # MONAI annotates its two halves differently
        array, meta = opened.get_data(opened.read(path))
    except Exception as error:  # the reader raises any of several types
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}): export it again.") from error
    if array.ndim != 3:
        raise DataError(f"{path} has shape {array.shape}; expected is one volume of three dimensions.")
    if str(meta.get("space", "RAS")).lower() not in SPACES:
        raise DataError(f"{path} is in the space {meta['space']!r}; known are {', '.join(SPACES[:2])}: convert it.")
    affine = np.asarray(meta["affine"], dtype=np.float64)
    if str(meta.get("space")).lower() == "lps":  # MONAI knows only the long name
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return np.asarray(array), affine


def _load_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    _, volume = open_nifti(str(path))  # which refuses what its header cannot be
    try:
        array = np.asanyarray(volume.dataobj)
    except Exception as error:  # nibabel raises any of several types
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}): copy the file again.") from error
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    return array, np.asarray(volume.affine)


def check_label(label: np.ndarray, path: Path) -> np.ndarray:
    """``label`` (H, W, D) as uint8.

    Raises:
        DataError: when it is not 3D, or has values that are no integers from 0 to 255.
    """
    values = _values(label, path)
    if odd := [value for value in values if not 0 <= value <= MOST_LABEL]:
        raise DataError(
            f"{path} has label values {odd[:LISTED]}; expected are integers from 0 to {MOST_LABEL}: renumber them with "
            '--label_map, such as "{420: 1, others: 0}".'
        )
    return label.astype(np.uint8)


def check_label_map(label_map: Mapping[int | str, int] | None, *, named: bool = False) -> None:
    """Raises DataError unless a map gives a value from 0 to 255 to label values, and perhaps to "others".

    Args:
        label_map: value to value.
        named: whether there are segments, which have names.
    """
    for value, new in (label_map or {}).items():
        is_key = type(value) is int or value == OTHERS or (named and isinstance(value, str))
        if not is_key or type(new) is not int or not 0 <= new <= MOST_LABEL:
            raise DataError(
                f"label_map has {value!r}: {new!r}; it gives whole numbers, and {OTHERS!r} for all that it does not "
                f'name, a value from 0 to {MOST_LABEL}: "{{420: 1, others: 0}}".'
            )


def original_values(label_map: Mapping[int | str, int]) -> list[int] | None:
    """The values of the classes 1, 2, ... before ``label_map``; None where some had several, or all are the same."""
    sources: dict[int, list[int | str]] = {}
    for value, new in label_map.items():
        if new:
            sources.setdefault(new, []).append(value)
    values = [sources.get(number, []) for number in range(1, max(sources, default=0) + 1)]
    found = [value for own in values if len(own) == 1 for value in own if isinstance(value, int) and value > 0]
    return found if len(found) == len(values) and found != list(range(1, len(found) + 1)) else None


def renumber(label: np.ndarray, label_map: Mapping[int | str, int], path: Path) -> np.ndarray:
    """``label`` (H, W, D) with every value replaced as ``label_map`` says, uint8; 0 stays 0 if it is not named.

    Raises:
        DataError: when the label is not 3D, or has a value that is no whole number, or that the map does not name.
    """
    values = _values(label, path)
    unnamed = [value for value in values if value not in label_map and value != 0]
    if unnamed and OTHERS not in label_map:
        raise DataError(
            f"{path} has label values {unnamed[:LISTED]}, which --label_map does not name: name them, or add "
            f"{OTHERS}: 0 to make them background."
        )
    renumbered = np.full(label.shape, label_map.get(OTHERS, 0), np.uint8)
    for value in values:
        if value in label_map or value == 0:
            renumbered[label == value] = label_map.get(value, 0)
    return renumbered


def _values(label: np.ndarray, path: Path) -> list[int]:
    """The values of a label, in ascending order.

    Raises:
        DataError: when it is not 3D, or a value is no whole number.
    """
    if label.ndim != 3:
        raise DataError(f"{path} has shape {label.shape}; a label is one volume of three dimensions.")
    values = np.unique(label).tolist()
    if broken := [value for value in values if value != value or value != np.rint(value)]:
        raise DataError(
            f"{path} has label values {broken[:LISTED]}; expected are whole numbers: check that it is a label and not "
            "an image, and resample labels by nearest neighbour."
        )
    return [int(value) for value in values]


def save_volume(array: np.ndarray, affine: np.ndarray, path: Path) -> Path:
    """Writes ``array`` (H, W, D) as NIfTI with ``affine`` (4, 4), mm, in qform and sform; returns ``path``.

    Floats are stored as float32, whole numbers within int16 as int16, which halves the files of CT and MR.
    """
    if array.dtype.kind == "f" and np.array_equal(array, np.rint(array)) and np.abs(array).max() < 2**15:
        array = array.astype(np.int16)
    elif array.dtype.kind == "f" or array.dtype.itemsize > 2:
        array = array.astype(np.float32)
    elif array.dtype == bool:
        array = array.astype(np.uint8)
    volume = nibabel.Nifti1Image(array, affine)
    volume.header.set_xyzt_units("mm")
    volume.set_qform(affine, code="scanner")
    volume.set_sform(affine, code="scanner")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(volume, path)
    return path
