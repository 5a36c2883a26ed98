"""Checks: finds what is wrong with the cases of a run before it starts, all of it in one message."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np

if TYPE_CHECKING:
    from .label_coding import LabelCoding

# Image and label may differ by this fraction of a voxel, for rounding in their headers.
AFFINE_TOLERANCE = 0.5
# More problems than this are counted, not listed.
LISTED_PROBLEMS = 20


class DataError(ValueError):
    """The user's data or its description is at fault; the message names the file, the value and the remedy."""


def check_cases(
    cases: list[dict[str, Any]], *, in_channels: int, label_coding: LabelCoding | None = None
) -> list[dict[str, Any]]:
    """Returns ``cases`` unchanged if the files of all of them can be used.

    Every image is read once, which finds truncated files; labels only of the cases that have a label key.

    Args:
        cases: dictionaries with "image" (a path, or a list of one path per modality) and possibly "label".
        in_channels: channels that the network takes.
        label_coding: defines the label values that may occur; None to leave labels unread.

    Raises:
        DataError: naming every file that is missing, cannot be read, or does not have the expected number of
            channels; and every label that is not on its image's grid or has unexpected values.
    """
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda case: _problems(case, in_channels, label_coding), cases))
    problems = [problem for case_problems in found for problem in case_problems]
    if problems:
        more = f"\n  and {len(problems) - LISTED_PROBLEMS} more" if len(problems) > LISTED_PROBLEMS else ""
        listed = "\n  ".join(problems[:LISTED_PROBLEMS])
        raise DataError(f"{len(problems)} problem(s) in {len(cases)} cases:\n  {listed}{more}")
    return cases


def _problems(case: dict[str, Any], in_channels: int, label_coding: LabelCoding | None) -> list[str]:
    problems = []
    files = case["image"] if isinstance(case["image"], list) else [case["image"]]
    images = []
    for path in files:
        opened = _open(path)
        if isinstance(opened, str):
            problems.append(opened)
        elif len(opened.shape) not in (3, 4):
            problems.append(f"{path} has shape {opened.shape}: images are 3D, or 4D with the channels last.")
        elif unreadable := _unreadable(path, opened):
            problems.append(unreadable)
        else:
            images.append(opened)
    if problems:
        return problems
    channels = sum(image.shape[3] if len(image.shape) == 4 else 1 for image in images)
    if channels != in_channels:
        problems.append(
            f"{files[0]} has {channels} channel(s) and the network takes {in_channels}: set in_channels to {channels}."
        )
    if label_coding is not None:
        if "label" in case:
            problems.extend(_label_problems(case["label"], images[0], files[0], label_coding))
        else:
            problems.append(f"{files[0]} has no label in dataset.json and needs one: add it, or move the case.")
    return problems


def _label_problems(path: str, image: Any, image_path: str, label_coding: LabelCoding) -> list[str]:
    label = _open(path)
    if isinstance(label, str):
        return [label]
    shape = image.shape[:3]
    if label.shape[:3] != shape or label.shape[3:] not in ((), (1,)):
        return [f"{path} has shape {label.shape} and its image {image_path} has {shape}: they must be equal."]
    offset = np.abs(_corners(label.affine, shape) - _corners(image.affine, shape)).max()
    if offset > AFFINE_TOLERANCE * np.linalg.norm(image.affine[:3, :3], axis=0).min():
        return [
            f"{path} lies up to {offset:.1f} mm away from its image {image_path} by their affines: "
            "resample the label onto the image, or copy the image's header to it."
        ]
    if unreadable := _unreadable(path, label):
        return [unreadable]
    values = np.unique(np.asanyarray(label.dataobj))
    unexpected = [value for value in values.tolist() if value not in label_coding.values]
    if unexpected:
        return [
            f"{path} has label values {unexpected[:5]} and {label_coding.values} are expected: "
            "set num_classes to the number of foreground classes, or renumber the labels."
        ]
    return []


def _corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Positions (3, 8), mm, of the eight corner voxels of a volume."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    return affine[:3, :3] @ corners + affine[:3, 3:]


def _unreadable(path: str, volume: Any) -> str | None:
    """What keeps the voxels of an opened file from being read, as a sentence; None if nothing does."""
    try:
        np.asanyarray(volume.dataobj)
    except Exception as error:  # a truncated archive raises any of several types
        return f"{path} cannot be read ({type(error).__name__}: {error}): copy the file again."
    return None


def _open(path: str) -> Any:
    """The opened image, its voxels not yet read, or the problem as a sentence."""
    if not Path(path).is_file():
        return f"{path} does not exist: correct dataset.json or dataset_dir."
    try:
        return nibabel.load(path)
    except Exception as error:  # nibabel raises any of several types for a damaged header
        return f"{path} is not a readable NIfTI file ({type(error).__name__}: {error})."
