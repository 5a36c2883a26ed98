"""Originals: miniature files as scanners and archives write them: DICOM series through pydicom, NRRD through pynrrd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nrrd
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

INTERCEPT = -1024


def write_dicom(
    folder: Path,
    volume: np.ndarray,
    *,
    spacing: tuple[float, float, float] = (0.8, 0.9, 2.5),
    origin: tuple[float, float, float] = (-11.0, 7.0, 30.0),
    series: str | None = None,
    head_first: bool = False,
    number: Callable[[int], int] | None = None,
    directions: Sequence[float] = (1, 0, 0, 0, 1, 0),
    step: Sequence[float] | None = None,
    tags: Mapping[str, object] | None = None,
) -> np.ndarray:
    """Writes ``volume`` (columns, rows, slices), int, HU, as a CT series.

    The file names are in another order than the slices, and slices are numbered from the head where ``head_first``.

    Args:
        folder: of the files.
        volume: see above.
        spacing: mm, between columns, rows and slices.
        origin: mm, LPS, of the first voxel.
        series: its UID.
        head_first: see above.
        number: of slice k, instead.
        directions: of a row's and of a column's pixels.
        step: mm, LPS, from one slice to the next, instead of along the normal.
        tags: further attributes.

    Returns:
        The affine (4, 4), mm, from (column, row, slice) to RAS, by the standard's definition of the attributes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, study = series or generate_uid(), generate_uid()
    count = volume.shape[2]
    row, column = np.reshape(np.asarray(directions, float), (2, 3))
    step = np.asarray(np.cross(row, column) * spacing[2] if step is None else step)
    for k in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        name = folder / f"1-{(k * 7) % 101:03d}.dcm"
        dataset = FileDataset(str(name), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = series, study, "CT"
        dataset.InstanceNumber = number(k) if number else count - k if head_first else k + 1
        dataset.ImagePositionPatient = [round(float(v), 6) for v in np.asarray(origin) + k * step]
        dataset.ImageOrientationPatient = list(directions)
        dataset.PixelSpacing = [spacing[1], spacing[0]]  # between rows, then between columns
        dataset.SliceThickness = spacing[2]
        dataset.Columns, dataset.Rows = volume.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, INTERCEPT
        dataset.PixelData = np.ascontiguousarray((volume[:, :, k].T - INTERCEPT).astype("<i2")).tobytes()
        for tag, value in (tags or {}).items():
            setattr(dataset, tag, value)
        dataset.save_as(name, enforce_file_format=True)
    lps = np.eye(4)
    lps[:3] = np.stack([row * spacing[0], column * spacing[1], step, np.asarray(origin)], axis=1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def write_frames(
    path: Path,
    volume: np.ndarray,
    *,
    spacing: tuple[float, float, float] = (0.8, 0.9, 2.5),
    origin: tuple[float, float, float] = (-11.0, 7.0, 30.0),
    order: Sequence[int] | None = None,
    tags: Mapping[str, object] | None = None,
) -> None:
    """Writes ``volume`` (columns, rows, slices), int, HU, as one file of many frames, in ``order``, with ``tags``."""

    def item(**values: object) -> Sequence[Dataset]:
        part = Dataset()
        for name, value in values.items():
            setattr(part, name, value)
        return DicomSequence([part])

    path.parent.mkdir(parents=True, exist_ok=True)
    order = list(order or range(volume.shape[2]))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = EnhancedCTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality, dataset.NumberOfFrames = generate_uid(), "CT", len(order)
    dataset.Columns, dataset.Rows = volume.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    shared = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelMeasuresSequence=item(PixelSpacing=[spacing[1], spacing[0]], SliceThickness=spacing[2]),
        PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=INTERCEPT),
    )
    dataset.SharedFunctionalGroupsSequence = shared
    places = [[*origin[:2], origin[2] + k * spacing[2]] for k in order]
    frames = [item(PlanePositionSequence=item(ImagePositionPatient=place))[0] for place in places]
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    stored = (volume[:, :, order].transpose(2, 1, 0) - INTERCEPT).astype("<i2")
    dataset.PixelData = np.ascontiguousarray(stored).tobytes()
    for tag, value in (tags or {}).items():
        setattr(dataset, tag, value)
    dataset.save_as(path, enforce_file_format=True)


def write_nrrd(
    path: Path,
    volume: np.ndarray,
    *,
    spacing: tuple[float, float, float] = (0.625, 0.625, 1.25),
    origin: tuple[float, float, float] = (-20.0, 15.0, 4.0),
    space: str = "left-posterior-superior",
) -> np.ndarray:
    """Writes ``volume`` (H, W, D) as gzipped NRRD and returns its affine (4, 4), mm, to RAS, if ``space`` is LPS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "space": space,
        "space directions": np.diag(spacing),
        "space origin": np.array(origin),
        "kinds": ["domain"] * 3,
        "encoding": "gzip",
    }
    nrrd.write(str(path), volume, header)
    lps = np.diag([*spacing, 1.0])
    lps[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
