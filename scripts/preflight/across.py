"""Across: what is wrong with cases only in view of each other or of the settings: copies, classes, patch, spacing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
from monai.transforms import RandRotate90d

from scripts.data import LabelCoding, Problem
from scripts.data.checks import images_of
from scripts.data.contents import Contents, File, Finding
from scripts.data.nifti import Header

Lists = Mapping[str, Sequence[Mapping[str, Any]]]
# A voxel size that differs from the median by this factor is pointed out.
UNUSUAL_SPACING = 2.0
# Voxel sizes of two axes that quarter turns swap may differ by this factor: a turn stretches an object by it along one
# axis and shrinks it along the other, as much as the scaling by 0.7 to 1.4 that is usual as an augmentation.
TURNABLE = 1.5
# The two lists of training; a copy in both is no leak.
TRAINING = ("labeled", "unlabeled")
# Names of files that a problem lists.
NAMED = 3


def images(lists: Lists, found: Mapping[File, Finding]) -> list[tuple[str, Contents]]:
    """The usable image files of all cases, with the list that each is in."""
    files = [(name, path) for name, cases in lists.items() for case in cases for path in images_of(case)]
    usable = [(name, found[path, False]) for name, path in files]
    return [(name, image) for name, image in usable if isinstance(image, Contents)]


def copy_problems(lists: Lists, found: Mapping[File, Finding]) -> list[Problem]:
    """Images with the same voxels: an error where they are trained on and tested with, else a warning.

    The voxels are compared, not the files, so another compression or data type does not hide a copy; flipping,
    resampling or cropping does.
    """
    copies: dict[str, list[tuple[str, str]]] = {}
    for name, image in images(lists, found):
        if image.minimum != image.maximum:  # constant images have been reported as that
            copies.setdefault(image.digest, []).append((name, image.header.path))
    problems = []
    for same in copies.values():
        first_name, first = same[0]
        for name, path in same[1:]:
            sides = {"training" if side in TRAINING else side for side in (first_name, name)}
            what = f"({name}) has the same voxels as {first} ({first_name})"
            if len(sides) > 1:
                remedy = "take one out: results on cases that were trained on, or chosen by, say nothing"
                problems.append(Problem("copies", path, what, remedy))
            else:
                problems.append(Problem("copies", path, what, "take one out if that is not meant", level="warning"))
    return problems


def class_problems(lists: Lists, found: Mapping[File, Finding], label_coding: LabelCoding | None) -> list[Problem]:
    """Foreground that no labeled case has: an error if there is none at all, a warning for a single value.

    Of a case with "annotated", only the values that it lists count, as in the training.
    """
    cases = [case for case in lists.get("labeled", ()) if "label" in case]
    labels = [found.get((case["label"], True)) for case in cases]
    usable = [label for label in labels if isinstance(label, Contents)]
    if not usable or len(usable) < len(labels):
        return []  # without all of them nothing can be said
    values: set[int] = set()
    for case, label in zip(cases, usable):
        own = {int(value) for value in label.values}
        values |= own & set(case["annotated"]) if "annotated" in case else own
    partial = any("annotated" in case for case in cases)
    file, counted = "labeled", " that their 'annotated' lets count" if partial else ""
    if not values - {0, label_coding.ignore_value if label_coding else 0}:
        what = f"cases ({len(usable)}) have no foreground voxel at all{counted}"
        return [Problem("classes", file, what, "put cases with foreground first in 'training', or raise num_labeled")]
    missing = [value for value in (label_coding.values if label_coding else []) if value and value not in values]
    what = f"cases ({len(usable)}) have no voxel of the label values {missing}{counted}"
    remedy = "put cases that have them first in 'training', or raise num_labeled"
    remedy += ", or list them in 'annotated' where they were annotated" if partial else ""
    return [Problem("classes", file, what, remedy, level="warning")] if missing else []


def network_shape(header: Header, spacing: Sequence[float] | None) -> tuple[int, ...]:
    """Shape (3,) of a volume as the network sees it: RAS axes, resampled to ``spacing`` (mm) if it is given."""
    axes = np.argsort(nibabel.io_orientation(header.affine)[:, 0])
    shape, edges = np.array(header.shape[:3])[axes], header.spacing[axes]
    if spacing is not None:
        shape = np.maximum(np.round((shape - 1) * edges / network_spacing(header, spacing) + 1), 1)
    return tuple(int(n) for n in shape)


def patch_problems(
    lists: Lists, found: Mapping[File, Finding], patch_size: Sequence[int] | None, spacing: Sequence[float] | None
) -> list[Problem]:
    """One warning that names the volumes smaller than the patch, which are padded with zeros."""
    if not patch_size:
        return []
    shapes = {image.header.path: network_shape(image.header, spacing) for _, image in images(lists, found)}
    small = {path: shape for path, shape in shapes.items() if any(n < p for n, p in zip(shape, patch_size))}
    if not small:
        return []
    least = tuple(int(n) for n in np.min(list(small.values()), axis=0))
    what = f"in at least one axis smaller than patch_size {list(patch_size)} (least {least}) and padded with zeros"
    remedy = "lower patch_size, in multiples of 16, if that is much of them"
    return [Problem("patch", _named(list(small), len(shapes)), f"{_is(small)} {what}", remedy, level="warning")]


def network_spacing(header: Header, spacing: Sequence[float] | None) -> np.ndarray:
    """Voxel size (3,), mm, of a volume as the network sees it, see :func:`network_shape`."""
    edges = header.spacing[np.argsort(nibabel.io_orientation(header.affine)[:, 0])]
    if spacing is None:
        return edges
    target = np.asarray(spacing, dtype=float)
    return np.where(np.isfinite(target) & (target > 0), target, edges)


def turn_problems(
    lists: Lists, found: Mapping[File, Finding], spacing: Sequence[float] | None, augmentation: Sequence[Any] | None
) -> list[Problem]:
    """One warning where random quarter turns swap two axes of clearly different voxel size."""
    training = images({name: lists.get(name, ()) for name in TRAINING}, found)
    edges = [network_spacing(image.header, spacing) for _, image in training]
    if not edges:
        return []
    for turn in augmentation or ():
        if not isinstance(turn, RandRotate90d):
            continue
        first, second = (axis % 3 for axis in turn.spatial_axes)
        sizes = [size[[first, second]] for size in edges]
        count = sum(size.max() / size.min() > TURNABLE for size in sizes)
        if count:
            worst = max(sizes, key=lambda size: size.max() / size.min())
            what = (
                f"turns {count} of {len(edges)} images about, whose voxels along axes {first} and {second} differ by "
                f"up to {worst.max() / worst.min():.2g} times ({worst[0]:.3g} and {worst[1]:.3g} mm), so that thick "
                "and thin are swapped"
            )
            remedy = "use flips alone, as a plan does (docs/how_to/anisotropic_data.md has the overlay)"
            return [Problem("augmentation", "augmentation (RandRotate90d)", what, remedy, level="warning")]
    return []


def unlabeled_problems(lists: Lists, unlabeled_batch_size: int) -> list[Problem]:
    """One warning where unlabeled crops are asked for and there is no case to draw them from."""
    if unlabeled_batch_size == 0 or lists.get("unlabeled"):
        return []
    what = (
        "finds no unlabeled case: every batch has labeled crops alone, so that terms for unlabeled crops are missing "
        "and those for all crops, such as DBiSL's consistency and pseudo-labels, see the labeled ones only"
    )
    remedy = (
        "add images to the list 'unlabeled' (--unlabeled_dir of tools.preparation.dataset), or train with "
        "configs/methods/supervised.json for labels alone"
    )
    return [Problem("unlabeled", f"unlabeled_batch_size {unlabeled_batch_size}", what, remedy, level="warning")]


def spacing_problems(lists: Lists, found: Mapping[File, Finding], spacing: Sequence[float] | None) -> list[Problem]:
    """One warning that names volumes whose voxels are unlike the others', unless all are resampled anyway."""
    headers = [image.header for _, image in images(lists, found)]
    if spacing is not None or not headers:
        return []
    edges = np.array([header.spacing[np.argsort(nibabel.io_orientation(header.affine)[:, 0])] for header in headers])
    median = np.median(edges, axis=0)
    factor = np.maximum(edges / median, median / edges).max(axis=1)
    unusual = [header.path for header, much in zip(headers, factor) if much > UNUSUAL_SPACING]
    if not unusual:
        return []
    rounded = [float(f"{edge:.3g}") for edge in median]
    what = f"{_is(unusual)} of another voxel size than the median {rounded} mm by a factor above {UNUSUAL_SPACING:g}"
    remedy = f'resample all: --spacing "{rounded}"'
    return [Problem("spacing", _named(unusual, len(headers)), what, remedy, level="warning")]


def overview(lists: Lists, found: Mapping[File, Finding]) -> dict[str, Any]:
    """What a reader wants to see at a glance: counts, ranges of shape and spacing, orientations, label values."""
    headers = [image.header for _, image in images(lists, found)]
    labels = [finding for (_, is_label), finding in found.items() if is_label and isinstance(finding, Contents)]
    facts: dict[str, Any] = {"cases": {name: len(cases) for name, cases in lists.items()}, "files": len(found)}
    if headers:
        shapes = np.array([header.shape[:3] for header in headers])
        edges = np.array([header.spacing for header in headers]).round(4)
        facts["shape"] = [shapes.min(0).tolist(), "to", shapes.max(0).tolist()]
        facts["spacing (mm)"] = [edges.min(0).tolist(), "to", edges.max(0).tolist()]
        codes = Counter("".join(nibabel.aff2axcodes(header.affine)) for header in headers)
        facts["orientation"] = dict(codes.most_common())
    if labels:
        facts["label values"] = sorted({int(value) for label in labels for value in label.values})[:20]
    return facts


def cache_bytes(
    lists: Lists, found: Mapping[File, Finding], spacing: Sequence[float] | None, cache_rate: float = 1.0
) -> tuple[int, int]:
    """Bytes of the preprocessed training and validation cases, float32 on the network's grid: in memory and in files.

    Args:
        lists: cases by list.
        found: what was found in their files.
        spacing: see :func:`network_shape`.
        cache_rate: share of the training cases that lie in memory.
    """
    memory, files = 0.0, 0.0
    for name in ("labeled", "unlabeled", "validation"):
        for case in lists[name]:
            usable = [found[path, False] for path in images_of(case)]
            headers = [image.header for image in usable if isinstance(image, Contents)]
            channels = sum(header.channels for header in headers)
            if headers:
                size = 4 * math.prod(network_shape(headers[0], spacing)) * (channels + int("label" in case))
                share = cache_rate if name in TRAINING else 1
                memory, files = memory + share * size, files + (1 - share) * size
    return round(memory), round(files)


def mask_bytes(cases: Sequence[Mapping[str, Any]], found: Mapping[File, Finding]) -> int:
    """Bytes of the masks of ``cases``, uint8, not counting on their compression."""
    shapes = [image.header.shape[:3] for _, image in images({"test": cases}, found)]
    return sum(math.prod(shape) for shape in shapes)


def _is(files: Any) -> str:
    return "is" if len(files) == 1 else "are"


def _named(files: Sequence[str], among: int) -> str:
    """A file, or how many of how many with the names of the first."""
    if len(files) == 1:
        return files[0]
    more = ", ..." if len(files) > NAMED else ""
    return f"{len(files)} of {among} images ({', '.join(files[:NAMED])}{more})"
