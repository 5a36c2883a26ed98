"""Segments: labels that come as named masks, which lie on grids of their own and may overlap, merged into one volume.

3D Slicer's .seg.nrrd (names, layers, cropped extents), DICOM-SEG, and a folder with one mask per structure, as
TotalSegmentator writes it. A class is known by its name alone: the numbers in such files differ from case to case.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from scripts.data import DataError

from .dicom import LPS_TO_RAS, is_dicom, read_file
from .packages import need_package
from .volumes import LPS_SPACES, MOST_LABEL, NRRD_SUFFIXES, OTHERS, is_nifti, load_volume, structures_in, volume_name

LISTED = 5
SLICER_NAME = re.compile(r"Segment(\d+)_Name$")
# Grids that differ by less than this fraction of a voxel are one.
GRID_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Segment:
    """One structure: its name, its mask (H, W, D), bool, and the affine (4, 4), mm, to RAS, of that."""

    name: str
    mask: np.ndarray
    affine: np.ndarray


def has_segments(path: Path) -> bool:
    """Whether a label has named segments."""
    if path.is_dir():
        return bool(structures_in(path)) or _is_seg(path)
    if path.name.lower().endswith(NRRD_SUFFIXES):
        return bool(_slicer_names(_nrrd(path, "read_header")))
    return not is_nifti(path) and _is_seg(path)


def segment_names(path: Path) -> list[str]:
    """The names of the segments of a label, in their order.

    Raises:
        DataError: when two of them have one name.
    """
    if path.is_dir() and (files := structures_in(path)):
        names = [volume_name(file) for file in files]
    elif path.name.lower().endswith(NRRD_SUFFIXES):
        header = _nrrd(path, "read_header")
        names = [str(header[f"Segment{number}_Name"]) for number in _slicer_names(header)]
    else:
        names = _seg_names(_seg(path))
    twice = [name for name, count in Counter(name.lower() for name in names).items() if count > 1]
    if twice:
        raise DataError(f"{path} has several segments called {twice[0]!r}: rename or merge them.")
    return names


def numbering(
    names: Mapping[Path, Sequence[str]],
    *,
    class_names: Sequence[str] | None,
    label_map: Mapping[int | str, int] | None,
) -> dict[str, int]:
    """The label value of every segment by its name in lower case, in the order in which they are painted.

    A later one covers an earlier one. Those of ``label_map`` are in its order; else the values are the positions in
    ``class_names``; without both, the names are counted as they occur.

    Args:
        names: of the segments of every label.
        class_names: of the values 1, 2, ...
        label_map: name to value, and :data:`~.volumes.OTHERS` for what it does not name; entries of numbers are for
            labels without segments.

    Raises:
        DataError: naming the segments that have no value, or names of ``label_map`` that no segment has.
    """
    by_name = {str(name).lower(): value for name, value in (label_map or {}).items() if isinstance(name, str)}
    others = by_name.pop(OTHERS, None)
    found = {name.lower(): path for path, own in names.items() for name in own}
    if unused := [name for name in by_name if name not in found]:
        raise DataError(
            f"label_map names {unused[0]!r}, and the segments are called {', '.join(list(found)[:LISTED])}, ...: "
            "correct it."
        )
    if not by_name and class_names:
        by_name = {str(name).lower(): value for value, name in enumerate(class_names, 1)}
    elif not by_name:
        by_name = {name: value for value, name in enumerate(found, 1)}
    left = [name for name in found if name not in by_name]
    if left and others is None:
        raise DataError(
            f"{found[left[0]]} has the segments {', '.join(left[:LISTED])}, which have no class: add them to "
            f'--class_names, or write --label_map "{{{list(found)[0]}: 1, {OTHERS}: 0}}" with a value for each that '
            f"you want, and {OTHERS}: 0 to make the rest background."
        )
    if max(by_name.values(), default=0) > MOST_LABEL:
        raise DataError(f"there are {len(by_name)} segments; a label has values up to {MOST_LABEL}: choose some.")
    return {**dict.fromkeys(left, others or 0), **by_name}


def merged(
    path: Path, values: Mapping[str, int], shape: Sequence[int], affine: np.ndarray
) -> tuple[np.ndarray, dict[tuple[str, str], int]]:
    """The segments of a label as one volume on the grid of its image.

    Segments on another grid are resampled to the nearest voxel; nothing changes where the grids only differ in extent
    or in the order of the axes.

    Args:
        path: see :func:`has_segments`.
        values: label values by name in lower case, in the order of painting; see :func:`numbering`.
        shape: (3,) voxels of the image.
        affine: (4, 4), mm, of the image.

    Returns:
        label ``shape``, uint8; and how many voxels a segment of another value has taken from an earlier one, by both
        names.

    Raises:
        DataError: when it cannot be read, or a segment lies outside of the image.
    """
    label = np.zeros(tuple(shape), np.uint8)
    painted = np.zeros(label.shape, np.uint16)  # number of the segment on top, from 1
    order = {name: n for n, name in enumerate(values)}
    segments = sorted(load_segments(path), key=lambda segment: order[segment.name.lower()])
    overlaps: dict[tuple[str, str], int] = {}
    for number, segment in enumerate(segments, 1):
        value = values[segment.name.lower()]
        mask = onto_grid(segment.mask, segment.affine, shape, affine)
        if segment.mask.any() and not mask.any():
            raise DataError(f"{path}: the segment {segment.name!r} lies outside of its image, by their headers.")
        if value == 0:
            continue
        for below, count in zip(*np.unique(painted[mask & (label != value)], return_counts=True)):
            if below:
                overlaps[segments[int(below) - 1].name, segment.name] = int(count)
        label[mask], painted[mask] = value, number
    return label, overlaps


def onto_grid(mask: np.ndarray, affine: np.ndarray, shape: Sequence[int], target: np.ndarray) -> np.ndarray:
    """``mask`` (h, w, d) of one ``affine`` (4, 4), mm, on the grid of another, ``shape`` (3,), to the nearest voxel."""
    change = np.linalg.inv(affine) @ target
    if tuple(mask.shape) == tuple(shape) and np.abs(change - np.eye(4)).max() < GRID_TOLERANCE / max(shape):
        return mask
    moved = ndimage.affine_transform(
        mask.astype(np.uint8), change[:3, :3], change[:3, 3], output_shape=tuple(shape), order=0, mode="grid-constant"
    )
    return moved > 0


def load_segments(path: Path) -> list[Segment]:
    """The segments of a label.

    Raises:
        DataError: when it cannot be read.
    """
    if path.is_dir() and (files := structures_in(path)):
        loaded = [(volume_name(file), *load_volume(file)) for file in files]
        for file, (_, array, _) in zip(files, loaded):
            if array.ndim != 3:
                raise DataError(f"{file} has shape {array.shape}; a mask is one volume of three dimensions.")
        return [Segment(name, array > 0, affine) for name, array, affine in loaded]
    return list(_slicer_segments(path) if path.name.lower().endswith(NRRD_SUFFIXES) else _seg_segments(path))


def say_overlaps(found: Iterable[Mapping[tuple[str, str], int]]) -> list[str]:
    """One line for each two segments that share voxels in any case, with the number of these and of the cases."""
    voxels: Counter[tuple[str, str]] = Counter()
    cases: Counter[tuple[str, str]] = Counter()
    for overlaps in found:
        voxels.update(overlaps)
        cases.update(overlaps.keys())
    return [
        f"{above} covers {below} in {count} voxels of {cases[below, above]} cases: the later of both classes stays"
        for (below, above), count in voxels.most_common()
    ]


def _nrrd(path: Path, read: str) -> Any:
    """What a function of pynrrd, "read" or "read_header", gives for a file."""
    need_package("nrrd", "pynrrd", path)
    import nrrd

    try:
        return getattr(nrrd, read)(str(path))
    except Exception as error:  # pynrrd raises any of several types
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}): export it again.") from error


def _slicer_names(header: Mapping[str, Any]) -> list[int]:
    return sorted(int(found[1]) for key in header if (found := SLICER_NAME.match(key)))


def _slicer_segments(path: Path) -> Iterator[Segment]:
    """Of a .seg.nrrd file: the value within a layer that its header gives for each segment."""
    array, header = _nrrd(path, "read")
    layers = array if array.ndim == 4 else array[None]
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(header["space directions"], float)[-3:].T
    affine[:3, 3] = header["space origin"]
    if str(header.get("space", "")).lower() in LPS_SPACES:
        affine = LPS_TO_RAS @ affine
    for number in _slicer_names(header):
        layer = int(header.get(f"Segment{number}_Layer", 0))
        value = int(header.get(f"Segment{number}_LabelValue", number + 1))
        yield Segment(str(header[f"Segment{number}_Name"]), layers[layer] == value, affine)


def _is_seg(path: Path) -> bool:
    file = path if path.is_file() else next(iter(sorted(p for p in path.rglob("*") if is_dicom(p))), None)
    if file is None or not is_dicom(file) or find_spec("pydicom") is None:
        return False
    try:
        return read_file(file, specific_tags=["Modality"], stop_before_pixels=True).get("Modality") == "SEG"
    except DataError:  # reported where the file is read
        return False


def _seg(path: Path) -> Any:
    """A DICOM-SEG file, or the only one below a folder, as highdicom reads it."""
    need_package("highdicom", "highdicom", path)
    from highdicom.seg import segread

    files = [path] if path.is_file() else [file for file in path.rglob("*") if is_dicom(file)]
    if len(files) > 1:
        raise DataError(f"{path} holds {len(files)} DICOM-SEG files: keep one.")
    try:
        return segread(files[0])
    except Exception as error:  # highdicom raises any of several types
        raise DataError(f"{path} is no DICOM-SEG ({type(error).__name__}: {error}): export it again.") from error


def _seg_names(seg: Any) -> list[str]:
    return [str(seg.get_segment_description(number).segment_label) for number in seg.segment_numbers]


def _seg_segments(path: Path) -> Iterator[Segment]:
    """Of a DICOM-SEG file, from its first to its last slice with a segment; the slices between may be left out."""
    seg = _seg(path)
    try:
        volume = seg.get_volume()
    except Exception as error:  # its frames are no regular stack
        raise DataError(f"{path} is not one volume ({error}): export it again, or convert it to NIfTI.") from error
    affine = LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]]
    for index, name in enumerate(_seg_names(seg)):
        yield Segment(name, volume.array[..., index].T > 0.5, affine)
