"""DICOM: a series, or one file of many frames, as a volume whose slices are in the order of their places in space.

Nothing goes by InstanceNumber or by file names: both may repeat, count several acquisitions, or run the other way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data import DataError

from .packages import need_package

logger = logging.getLogger(__name__)

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
# Slices may lie this fraction of their distance off a regular grid, for rounding in their headers.
SLICE_TOLERANCE = 0.1
# Direction cosines of one series may differ by this much, and pixel spacings (mm) by this fraction.
DIRECTION_TOLERANCE, SPACING_TOLERANCE = 1e-3, 1e-3
# Slices that lean by more than this fraction of their distance are said to.
LEAN = 0.01
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# What tells two slices at one place apart, and what that means.
ACQUISITIONS = {
    "AcquisitionNumber": "acquisitions",
    "EchoTime": "echoes",
    "TemporalPositionIdentifier": "time points",
    "TriggerTime": "time points",
    "DiffusionBValue": "diffusion weightings",
    "ImageType": "kinds of image",
    "ContentTime": "times",
}
NO_VOLUME = {
    "RTSTRUCT": "contours: convert them to NIfTI masks, for example with 3D Slicer or dcmrtstruct2nii",
    "SR": "a report",
    "PR": "a presentation state",
}


@dataclass(frozen=True)
class Series:
    """A series as a volume.

    Args:
        array: (columns, rows, slices), float32, rescaled, for CT in HU.
        affine: (4, 4), float64, mm, to RAS; sheared where the slices lean (a tilted gantry).
        datasets: its files, as pydicom reads them.
        order: (slices,), int, of every slice the number of its frame, counted through the files.
    """

    array: np.ndarray
    affine: np.ndarray
    datasets: Sequence[Any]
    order: np.ndarray


def dicom_folders(folder: Path) -> list[Path]:
    """The folders at and below ``folder`` that hold DICOM files, sorted."""
    return sorted({path.parent for path in folder.rglob("*") if is_dicom(path)})


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its suffix or, where it has none, by the mark behind its preamble of 128 bytes."""
    if path.name.startswith(".") or not path.is_file() or path.name == "DICOMDIR":
        return False
    if path.suffix and not path.suffix[1:].isdigit():
        return path.suffix.lower() in DICOM_SUFFIXES
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_file(file: Path, **options: Any) -> Any:
    """A file as pydicom reads it, with the options of ``dcmread``.

    Raises:
        DataError: when pydicom is missing, or the file is damaged.
    """
    need_package("pydicom", "pydicom", file)
    import pydicom

    try:
        return pydicom.dcmread(file, **options)
    except Exception as error:  # pydicom raises any of several types
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}): export it again.") from None


def load_series(path: Path, files: Iterable[Path] | None = None) -> Series:
    """Reads the series in a folder, or a file of many frames.

    Args:
        path: of the folder or file; named in messages.
        files: of the series, instead of all DICOM files in ``path``.

    Raises:
        DataError: when it cannot be read, there are several series, or its slices are not one regular stack.
    """
    if files is None:
        files = [file for file in sorted(path.iterdir()) if is_dicom(file)] if path.is_dir() else [path]
    found: dict[Any, Any] = {}
    for file in files:
        dataset = read_file(file)
        found.setdefault(dataset.get("SOPInstanceUID", file), dataset)  # once, if it was exported twice
    datasets = list(found.values())
    series = {str(dataset.get("SeriesInstanceUID")): _name(dataset, path) for dataset in datasets}
    if len(series) > 1:
        raise DataError(
            f"{path} holds {len(series)} DICOM series ({', '.join(list(series.values())[:2])}, ...): keep one of them, "
            "or move each to its own folder."
        )
    frames = [frame for dataset in datasets for frame in _frames(dataset, path)]
    positions, directions, spacings = (
        _values(frames, tag, path) for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    _check_alike(datasets, directions, spacings, path)
    row, column = directions[0].reshape(2, 3)
    normal = np.cross(row, column)
    order = np.argsort(positions @ normal, kind="stable")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacings[0, 1], column * spacings[0, 0]
    affine[:3, 2] = _step([frames[n] for n in order], positions[order], normal, path)
    affine[:3, 3] = positions[order[0]]
    stored = np.concatenate([_pixels(dataset, path) for dataset in datasets])
    array = np.empty((*stored.shape[:0:-1], len(order)), np.float32)
    for k, n in enumerate(order):
        slope, intercept = frames[n].get("RescaleSlope"), frames[n].get("RescaleIntercept")
        slope, intercept = np.float32(1 if slope is None else slope), np.float32(intercept or 0)
        array[:, :, k] = stored[n].T * slope + intercept
    return Series(array, LPS_TO_RAS @ affine, datasets, order)


def _name(dataset: Any, path: Path) -> str:
    """The name of the file that a dataset was read from; that of ``path`` where it is not known."""
    return Path(str(getattr(dataset, "filename", None) or path)).name


def _frames(dataset: Any, path: Path) -> list[Any]:
    """What describes each slice of a file: itself, or the functional groups of a frame put together.

    Raises:
        DataError: when it holds no image, or colours.
    """
    from pydicom import Dataset

    modality = str(dataset.get("Modality"))
    if "Rows" not in dataset:
        what = NO_VOLUME.get(modality, "no image")
        raise DataError(f"{path} holds DICOM of the modality {modality}, which is {what}.")
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise DataError(f"{path} holds colours: export the series with one number per voxel.")
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return [dataset]
    frames = []
    for own in dataset.PerFrameFunctionalGroupsSequence:
        frame = Dataset()
        for groups in (*dataset.get("SharedFunctionalGroupsSequence", []), own):
            for group in groups:
                if group.VR == "SQ" and group.value:
                    frame.update(group.value[0])
        frames.append(frame)
    return frames


def _values(frames: Sequence[Any], tag: str, path: Path) -> np.ndarray:
    """The numbers (frames, n) of a tag.

    Raises:
        DataError: when a slice lacks it.
    """
    if any(not frame.get(tag) for frame in frames):
        raise DataError(f"{path} has slices without {tag}: export it as a CT or MR series.")
    return np.array([[float(value) for value in frame[tag].value] for frame in frames])


def _pixels(dataset: Any, path: Path) -> np.ndarray:
    """The stored numbers (frames, rows, columns) of a file.

    Raises:
        DataError: when they cannot be decoded.
    """
    try:
        return dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    except Exception as error:  # of decoders that are missing, or pixels that are
        raise DataError(
            f"{path}: the pixels of {_name(dataset, path)} cannot be decoded ({type(error).__name__}: {error}): "
            "copy it again, export it uncompressed, or install the packages that the message names."
        ) from error


def _check_alike(datasets: Sequence[Any], directions: np.ndarray, spacings: np.ndarray, path: Path) -> None:
    """Raises DataError unless there are slices (n,) of one size, orientation (n, 6) and pixel spacing (n, 2), mm."""
    if len(directions) < 2:
        raise DataError(f"{path} holds a single slice; expected is a series of at least two.")
    sizes = {(dataset.Rows, dataset.Columns) for dataset in datasets}
    if len(sizes) > 1 or np.abs(directions - directions[0]).max() > DIRECTION_TOLERANCE:
        raise DataError(f"{path} has slices of several sizes or orientations: remove the localizers.")
    if other := [spacing for spacing in spacings if not np.allclose(spacing, spacings[0], rtol=SPACING_TOLERANCE)]:
        raise DataError(
            f"{path} has slices of the pixel spacings {spacings[0].tolist()} and {other[0].tolist()} mm: keep those of "
            "one reconstruction."
        )


def _step(frames: Sequence[Any], positions: np.ndarray, normal: np.ndarray, path: Path) -> np.ndarray:
    """The vector (3,), mm, LPS, from one slice to the next, of sorted slices at ``positions`` (n, 3).

    Raises:
        DataError: when it is not the same everywhere.
    """
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    together = np.flatnonzero(steps <= SLICE_TOLERANCE * max(usual, float(steps.max())))
    if len(together):
        first, second = frames[together[0]], frames[together[0] + 1]
        differing = [kind for tag, kind in ACQUISITIONS.items() if first.get(tag) != second.get(tag)]
        kinds = f"several {differing[0]}" if differing else "the same slices twice"
        raise DataError(
            f"{path} has {len(together) + 1} or more slices at one place, {kinds} perhaps: keep those of one, or move "
            "each to its own folder."
        )
    if np.abs(steps - usual).max() > SLICE_TOLERANCE * usual:
        worst = int(np.abs(steps - usual).argmax())
        names = [_name(frame, path) for frame in frames[worst : worst + 2]]
        between = f" (between {names[0]} and {names[1]})" if names[0] != names[1] else ""
        raise DataError(
            f"{path} has slices {steps.min():.2f} to {steps.max():.2f} mm apart{between}: some are missing or belong "
            "to another series; export it again."
        )
    step = (positions[-1] - positions[0]) / len(steps)
    line = positions[0] + np.arange(len(positions))[:, None] * step
    if np.linalg.norm(positions - line, axis=1).max() > SLICE_TOLERANCE * usual:
        raise DataError(f"{path} has slices that are shifted against each other: export it again, or resample it.")
    if np.linalg.norm(step - (step @ normal) * normal) > LEAN * usual:
        logger.warning(
            "%s: its slices lean by %.1f degrees (a tilted gantry); the affine is sheared accordingly, which ITK's "
            "programs do not show: resample it for them.",
            path,
            np.degrees(np.arccos(np.clip(abs(step @ normal) / np.linalg.norm(step), -1, 1))),
        )
    return step
