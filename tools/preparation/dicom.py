"""DICOM: a series, or one file of many frames, as a volume whose slices are in the order of their places in space.

Nothing goes by InstanceNumber or by file names: both may repeat, count several acquisitions, or run the other way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
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
class Frame:
    """One slice.

    Args:
        source: its dataset, for messages.
        index: of the frame in its file; None for a file of one.
        position: (3,), mm, LPS, of the centre of its first pixel.
        directions: (2, 3), of a row's and of a column's pixels.
        spacing: (2,), mm, between rows and between columns.
        scale: slope and intercept.
        segment: number of the segment that it belongs to; None in an image.
    """

    source: Any
    index: int | None
    position: np.ndarray
    directions: np.ndarray
    spacing: np.ndarray
    scale: tuple[float, float] = (1.0, 0.0)
    segment: int | None = None


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


def read_datasets(path: Path) -> list[Any]:
    """The DICOM files of a folder, or the one file ``path``, without what was exported twice.

    Raises:
        DataError: when pydicom is missing, a file is damaged, or there are several series.
    """
    need_package("pydicom", "pydicom", path)
    import pydicom

    files = [file for file in sorted(path.iterdir()) if is_dicom(file)] if path.is_dir() else [path]
    found: dict[Any, Any] = {}
    for file in files:
        try:
            dataset = pydicom.dcmread(file)
        except Exception as error:  # pydicom raises any of several types
            raise DataError(f"{file} is damaged ({type(error).__name__}: {error}): export it again.") from None
        found.setdefault(dataset.get("SOPInstanceUID", file), dataset)
    series = {str(dataset.get("SeriesInstanceUID")): file_of(dataset, path) for dataset in found.values()}
    if len(series) > 1:
        raise DataError(
            f"{path} holds {len(series)} DICOM series ({', '.join(list(series.values())[:2])}, ...): keep one of them, "
            "or move each to its own folder."
        )
    return list(found.values())


def file_of(dataset: Any, path: Path) -> str:
    """The name of the file that a dataset was read from; ``path`` where it is not known."""
    return Path(str(getattr(dataset, "filename", None) or path)).name


def load_series(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the series in a folder, or a file of many frames.

    Returns:
        array (columns, rows, slices), float32, rescaled, for CT in HU. affine (4, 4), float64, mm, to RAS; sheared
        where the slices lean (a tilted gantry), which is logged.

    Raises:
        DataError: when it cannot be read, or its slices are not one regular stack.
    """
    frames = [frame for dataset in read_datasets(path) for frame in frames_of(dataset, path)]
    _check_stack(frames, path)
    frames = sorted(frames, key=lambda frame: float(_normal(frames) @ frame.position))
    positions = np.array([frame.position for frame in frames])
    step = _step(frames, positions, path)
    slices = [pixels_of(frame, path).T * np.float32(frame.scale[0]) + np.float32(frame.scale[1]) for frame in frames]
    return np.stack(slices, axis=-1).astype(np.float32), affine_of(frames[0], step)


def frames_of(dataset: Any, path: Path) -> Iterator[Frame]:
    """The slices of a dataset: itself, or those of its functional groups.

    Raises:
        DataError: when it has none, or a tag that places them in space is missing.
    """
    modality = str(dataset.get("Modality"))
    if "Rows" not in dataset:
        what = NO_VOLUME.get(modality, "no image")
        raise DataError(f"{path} holds DICOM of the modality {modality}, which is {what}.")
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise DataError(f"{path} holds colours: export the series with one number per voxel.")
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        yield _frame(dataset, None, dataset, dataset, dataset, dataset, path)
        return
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    for index, own in enumerate(per_frame):

        def group(name: str, own: Any = own) -> Any:
            return (own.get(name) or shared.get(name) or [{}])[0]

        segment = group("SegmentIdentificationSequence").get("ReferencedSegmentNumber")
        yield _frame(
            dataset,
            index,
            group("PlanePositionSequence"),
            group("PlaneOrientationSequence"),
            group("PixelMeasuresSequence"),
            group("PixelValueTransformationSequence"),
            path,
            segment=None if segment is None else int(segment),
        )


def _frame(
    dataset: Any,
    index: int | None,
    position: Any,
    orientation: Any,
    measures: Any,
    values: Any,
    path: Path,
    *,
    segment: int | None = None,
) -> Frame:
    found = {
        "ImagePositionPatient": position.get("ImagePositionPatient"),
        "ImageOrientationPatient": orientation.get("ImageOrientationPatient"),
        "PixelSpacing": measures.get("PixelSpacing"),
    }
    missing = [tag for tag, value in found.items() if value is None or len(value) == 0]
    if missing:
        raise DataError(f"{path} has slices without {', '.join(missing)}: export it as a CT or MR series.")
    place, directions, spacing = (np.array([float(v) for v in value]) for value in found.values())
    slope, intercept = (values.get(f"Rescale{name}") for name in ("Slope", "Intercept"))
    return Frame(
        source=dataset,
        index=index,
        position=place,
        directions=directions.reshape(2, 3),
        spacing=spacing,
        scale=(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
        segment=segment,
    )


def pixels_of(frame: Frame, path: Path) -> np.ndarray:
    """The stored numbers (rows, columns) of a slice.

    Raises:
        DataError: when they cannot be decoded.
    """
    try:
        array = frame.source.pixel_array
    except Exception as error:  # of decoders that are missing, or pixels that are
        raise DataError(
            f"{path}: the pixels of {file_of(frame.source, path)} cannot be decoded ({type(error).__name__}: {error}): "
            "copy it again, export it uncompressed, or install the packages that the message names."
        ) from error
    return array if frame.index is None or array.ndim == 2 else array[frame.index]


def affine_of(first: Frame, step: np.ndarray) -> np.ndarray:
    """The affine (4, 4), mm, from (column, row, slice) to RAS, of a stack with ``step`` (3,), mm, between slices."""
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[1]
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def _normal(frames: Sequence[Frame]) -> np.ndarray:
    return np.cross(*frames[0].directions)


def _check_stack(frames: Sequence[Frame], path: Path) -> None:
    """Raises DataError unless all slices have one size, orientation and pixel spacing."""
    if len(frames) < 2:
        raise DataError(f"{path} holds a single slice; expected is a series of at least two.")
    first = frames[0]
    for frame in frames:
        same_size = (frame.source.Rows, frame.source.Columns) == (first.source.Rows, first.source.Columns)
        if not same_size or np.abs(frame.directions - first.directions).max() > DIRECTION_TOLERANCE:
            raise DataError(f"{path} has slices of several sizes or orientations: remove the localizers.")
        if not np.allclose(frame.spacing, first.spacing, rtol=SPACING_TOLERANCE):
            spacings = f"{first.spacing.tolist()} and {frame.spacing.tolist()}"
            raise DataError(f"{path} has slices of the pixel spacings {spacings} mm: keep those of one reconstruction.")


def _step(frames: Sequence[Frame], positions: np.ndarray, path: Path) -> np.ndarray:
    """The vector (3,), mm, LPS, from one slice to the next, of sorted slices at ``positions`` (n, 3).

    Raises:
        DataError: when it is not the same everywhere.
    """
    normal = _normal(frames)
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    together = np.flatnonzero(steps <= SLICE_TOLERANCE * max(usual, float(steps.max())))
    if len(together):
        pair = [frames[int(together[0])].source, frames[int(together[0]) + 1].source]
        differing = [kind for tag, kind in ACQUISITIONS.items() if pair[0].get(tag) != pair[1].get(tag)]
        kinds = f"several {differing[0]}" if differing else "the same slices twice"
        raise DataError(
            f"{path} has {len(together) + 1} or more slices at one place, {kinds} perhaps: keep those of one, or move "
            "each to its own folder."
        )
    if np.abs(steps - usual).max() > SLICE_TOLERANCE * usual:
        worst = int(np.abs(steps - usual).argmax())
        names = [file_of(frame.source, path) for frame in frames[worst : worst + 2]]
        between = f" (between {names[0]} and {names[1]})" if names[0] != names[1] else ""
        raise DataError(
            f"{path} has slices {steps.min():.2f} to {steps.max():.2f} mm apart{between}: some are missing or belong "
            "to another series; export it again."
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    line = positions[0] + np.arange(len(positions))[:, None] * step
    if np.linalg.norm(positions - line, axis=1).max() > SLICE_TOLERANCE * usual:
        raise DataError(f"{path} has slices that are shifted against each other: export it again, or resample it.")
    if np.linalg.norm(step - (step @ normal) * normal) > LEAN * usual:
        angle = np.degrees(np.arccos(np.clip(abs(step @ normal) / np.linalg.norm(step), -1, 1)))
        logger.warning(
            "%s: its slices lean by %.1f degrees (a tilted gantry); the affine is sheared accordingly, which ITK's "
            "programs do not show: resample it for them.",
            path,
            angle,
        )
    return step
