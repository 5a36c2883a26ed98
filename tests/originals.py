"""Originals: miniature files as scanners and archives write them: DICOM series through pydicom, NRRD through pynrrd."""

from __future__ import annotations

from pathlib import Path

import nrrd
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

INTERCEPT = -1024


def write_dicom(
    folder: Path,
    volume: np.ndarray,
    *,
    spacing: tuple[float, float, float] = (0.8, 0.9, 2.5),
    origin: tuple[float, float, float] = (-11.0, 7.0, 30.0),
    series: str | None = None,
    head_first: bool = False,
) -> np.ndarray:
    """Writes ``volume`` (columns, rows, slices), int, HU, as an axial CT series.

    The file names are in another order than the slices, and slices are numbered from the head where ``head_first``.

    Returns:
        The affine (4, 4), mm, from (column, row, slice) to RAS, by the standard's definition of the attributes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, study = series or generate_uid(), generate_uid()
    count = volume.shape[2]
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        name = folder / f"1-{(number * 7) % 101:03d}.dcm"
        dataset = FileDataset(str(name), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = series, study, "CT"
        dataset.InstanceNumber = count - number if head_first else number + 1
        dataset.ImagePositionPatient = [origin[0], origin[1], origin[2] + number * spacing[2]]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [spacing[1], spacing[0]]  # between rows, then between columns
        dataset.SliceThickness = spacing[2]
        dataset.Columns, dataset.Rows = volume.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, INTERCEPT
        dataset.PixelData = np.ascontiguousarray((volume[:, :, number].T - INTERCEPT).astype("<i2")).tobytes()
        dataset.save_as(name, enforce_file_format=True)
    lps = np.diag([*spacing, 1.0])
    lps[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


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
