"""Convert: the volumes of a data set as NIfTI files on one grid per case, and labels with their final values."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from scripts.data import DataError
from scripts.data.checks import AFFINE_TOLERANCE, corners
from scripts.data.nifti import open_nifti

from .every_case import for_every_case
from .orientation import to_axes_of
from .pairing import CaseFiles
from .segments import has_segments, merged
from .splits import Split
from .volumes import check_label, is_nifti, load_volume, renumber, save_volume, volume_name

# Image and label may differ by this fraction of a voxel to count as one grid where the image is converted.
GRID_TOLERANCE = 0.1
Grid = tuple[tuple[int, ...], np.ndarray]  # shape and affine


@dataclass
class Converter:
    """Writes what is no NIfTI file, or changes, into ``root/images`` and ``root/labels``.

    Args:
        root: folder of the data set.
        label_map: new label values, see :func:`~.volumes.renumber`; empty to leave them.
        segments: label values of named segments, see :func:`~.segments.numbering`; empty where there are none.
        overlaps: gets those of every case with segments, see :func:`~.segments.merged`.
    """

    root: Path
    label_map: Mapping[int | str, int]
    segments: Mapping[str, int]
    overlaps: dict[str, dict[tuple[str, str], int]] = field(default_factory=dict)

    def convert_all(self, split: Split) -> dict[str, dict[str, Any]]:
        """Converts the files of all cases that are used, several at a time; labels only of cases that keep theirs.

        Returns:
            For every case "image" (a list of one path per channel) and, unless it is unlabeled, "label".

        Raises:
            DataError: naming every case that cannot be converted; the others have been, and no file is left unfinished.
        """
        jobs = [(case, False) for case in split.unlabeled]
        jobs += [(case, True) for case in (*split.labeled, *split.validation, *split.test)]
        entries = for_every_case(lambda job: self.convert(job[0], with_label=job[1]), jobs)
        return {case.name: entry for (case, _), entry in zip(jobs, entries, strict=True)}

    def convert(self, case: CaseFiles, *, with_label: bool) -> dict[str, Any]:
        """NIfTI paths of a case; writes those that are no NIfTI files, or whose label values change, below the folder.

        Raises:
            DataError: when a file cannot be read, or a converted image or a label lies off the grid of the first.
        """
        grid: Grid | None = None
        images = []
        for path in case.images:
            # In a folder per case many are called alike; outputs are named after the image and must not be.
            own_name = not case.of_folder or volume_name(path).startswith(case.name)
            name = volume_name(path) if own_name else f"{case.name}_{volume_name(path)}"
            name = case.name if len(case.images) == 1 else name
            if is_nifti(path):
                images.append(path if own_name else copy_as(path, self.root / "images" / name))
                continue
            array, own_affine = load_volume(path)
            grid = grid or (array.shape, own_affine)
            check_grid(array.shape, own_affine, grid, path, case.images[0])
            images.append(save_volume(array, grid[1], self.root / "images" / f"{name}.nii.gz"))
        entry: dict[str, Any] = {"image": images}
        if not with_label or case.label is None:
            return entry
        tolerance = GRID_TOLERANCE
        if grid is None:
            header, _ = open_nifti(str(images[0]))
            grid, tolerance = (header.shape[:3], header.affine), AFFINE_TOLERANCE
            if case.label.is_file() and is_nifti(case.label) and not self.label_map:
                header, _ = open_nifti(str(case.label))
                if nibabel.aff2axcodes(header.affine) == nibabel.aff2axcodes(grid[1]):
                    shape = header.shape[:3] if header.channels == 1 else header.shape
                    check_grid(shape, header.affine, grid, case.label, case.images[0], tolerance)
                    return {**entry, "label": case.label}
        target = self.root / "labels" / f"{case.name}.nii.gz"
        if target.resolve() == case.label.resolve():
            raise DataError(f"{case.label} would be overwritten by its changed copy: give another output_dir.")
        if self.segments and has_segments(case.label):
            label, self.overlaps[case.name] = merged(case.label, self.segments, *grid)
            return {**entry, "label": save_volume(label, grid[1], target)}
        label, own_affine = load_volume(case.label)
        label = renumber(label, self.label_map, case.label) if self.label_map else check_label(label, case.label)
        # A label that was drawn on another program's conversion of the series has other axes on the same grid.
        label, own_affine = to_axes_of(label, own_affine, grid[1])
        check_grid(label.shape, own_affine, grid, case.label, case.images[0], tolerance)
        return {**entry, "label": save_volume(label, grid[1], target)}


def copy_as(path: Path, target: Path) -> Path:
    """Copies a NIfTI file to ``target`` with its own suffix and returns where it is.

    Raises:
        DataError: when it cannot be read.
    """
    copied = target.with_name(target.name + path.name[len(volume_name(path)) :].lower())
    copied.parent.mkdir(parents=True, exist_ok=True)
    try:
        return Path(shutil.copyfile(path, copied))
    except OSError as error:
        raise DataError(f"{path} cannot be copied to {copied} ({error}): check both.") from error


def check_grid(
    shape: tuple[int, ...], affine: np.ndarray, grid: Grid, path: Path, first: Path, tolerance: float = GRID_TOLERANCE
) -> None:
    """Raises DataError unless a volume has the shape and, within ``tolerance`` voxels, the affine of the first."""
    first_shape, first_affine = grid
    if shape != first_shape:
        raise DataError(
            f"{path} has shape {shape} and {first} has {first_shape}: check that they are of the same case, or "
            "resample one onto the other's grid."
        )
    offset = np.abs(corners(affine, shape[:3]) - corners(first_affine, shape[:3])).max()
    if offset > max(tolerance * np.linalg.norm(first_affine[:3, :3], axis=0).min(), 1e-3):
        raise DataError(
            f"{path} lies up to {offset:.2f} mm away from {first} by their headers: resample one onto the other's grid."
        )
