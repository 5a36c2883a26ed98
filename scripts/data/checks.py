"""Checks: finds problems in the files of a case, for the preflight and for every data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .contents import Contents, File, Finding, inspect, inspect_once
from .nifti import Header
from .problems import DataError, Problem

if TYPE_CHECKING:
    from .label_coding import LabelCoding

# Image and label may differ by this fraction of a voxel, for rounding in their headers.
AFFINE_TOLERANCE = 0.5
# More problems than this are counted, not listed.
LISTED_PROBLEMS = 20
# Voxel sizes of header and affine, or of sform and qform, may differ by this fraction.
SPACING_TOLERANCE = 0.01
# Voxels thinner or thicker than this, in mm, are probably in another unit.
LEAST_SPACING, MOST_SPACING = 0.01, 50.0
# A label with more unexpected values than this is probably an image.
MANY_VALUES = 50
THREADS = 8


def check_cases(
    cases: list[dict[str, Any]],
    *,
    in_channels: int | None = None,
    label_coding: LabelCoding | None = None,
    with_label: bool | None = None,
) -> list[dict[str, Any]]:
    """Returns ``cases`` unchanged if all their files can be used.

    Every file is read once, labels only of cases whose labels are used, and none that the preflight of this process has
    read already. Warnings are left to the preflight.

    Args:
        cases: dictionaries with "image" (a path, or a list of one path per modality) and possibly "label".
        in_channels: channels that the network takes; None if that is not known.
        label_coding: defines the label values that may occur; None if they are not known.
        with_label: whether labels are read and needed; by default where there is a ``label_coding``.

    Raises:
        DataError: naming every file that is missing, cannot be read, or cannot be what it is given as
            (docs/preflight.md lists what is checked).
    """

    # Threads, since clients call this where no process may be started; decompression runs outside Python's lock.
    def in_threads(files: list[File]) -> list[Finding]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(inspect, files))

    with_label = label_coding is not None if with_label is None else with_label
    files = [file for case in cases for file in files_of(case, with_label=with_label)]
    found = inspect_once(files, inspect_all=in_threads)
    of_cases = (case_problems(case, found, in_channels, label_coding, with_label=with_label) for case in cases)
    # A file that is used twice is reported once.
    problems = list(dict.fromkeys(str(p) for of_case in of_cases for p in of_case if p.level == "error"))
    raise_all(problems, f"{len(problems)} problem(s) in {len(cases)} cases")
    return cases


def raise_all(problems: Sequence[str], title: str) -> None:
    """Raises a DataError that lists ``problems`` below ``title``, if there are any."""
    if problems:
        more = [f"and {len(problems) - LISTED_PROBLEMS} more"] if len(problems) > LISTED_PROBLEMS else []
        raise DataError("\n  ".join([f"{title}:", *problems[:LISTED_PROBLEMS], *more]))


def kept_apart(cases: list[dict[str, Any]], *, output_dir: str | Path) -> list[dict[str, Any]]:
    """Returns ``cases`` unchanged if none of their files is in ``output_dir``, where a mask could overwrite it.

    Raises:
        DataError: naming the first that does.
    """
    folder = Path(output_dir).resolve()
    for case in cases:
        for path, _ in files_of(case, with_label=True):
            if Path(path).parent.resolve() == folder:
                raise DataError(f"{path} lies in output_dir, where masks are written: choose another output_dir.")
    return cases


def images_of(case: Mapping[str, Any]) -> list[str]:
    """The image files of a case, one per modality."""
    return list(case["image"]) if isinstance(case["image"], (list, tuple)) else [case["image"]]


def files_of(case: Mapping[str, Any], *, with_label: bool) -> list[File]:
    """The files of a case to inspect."""
    files = [(path, False) for path in images_of(case)]
    return [*files, (case["label"], True)] if with_label and "label" in case else files


def case_problems(
    case: Mapping[str, Any],
    found: Mapping[File, Finding],
    in_channels: int | None,
    label_coding: LabelCoding | None,
    *,
    with_label: bool,
) -> list[Problem]:
    """Errors and warnings of one case, from the contents of its files.

    Args:
        case: see :func:`check_cases`.
        found: what :func:`~scripts.data.contents.inspect` says of its files.
        in_channels: channels that the network takes; None if that is not known.
        label_coding: defines the label values that may occur; None if they are not known.
        with_label: whether the case must have a label.
    """
    paths = images_of(case)
    findings = [found[path, False] for path in paths]
    problems = [finding for finding in findings if isinstance(finding, Problem)]
    images = [finding for finding in findings if isinstance(finding, Contents)]
    for image in images:
        problems += header_problems(image.header) + _intensity_problems(image)
    if len(images) == len(paths):
        problems += _modality_problems(images)
        channels = sum(image.header.channels for image in images)
        if in_channels is not None and channels != in_channels:
            what = f"has {channels} channel(s) and the network takes {in_channels}"
            problems.append(Problem("channels", paths[0], what, f"set in_channels to {channels}"))
    if with_label and "label" not in case:
        remedy = "add it, or move the case"
        problems.append(Problem("label", paths[0], "has no label in dataset.json and needs one", remedy))
    elif with_label:
        label = found[case["label"], True]
        problems += _annotated_problems(case, label_coding)
        if isinstance(label, Problem):
            problems.append(label)
        else:
            problems += _label_problems(label, images[0].header if images else None, label_coding)
    return problems


def _annotated_problems(case: Mapping[str, Any], label_coding: LabelCoding | None) -> list[Problem]:
    foreground = [value for value in label_coding.values if value] if label_coding else None
    unknown = [value for value in case.get("annotated", []) if foreground is not None and value not in foreground]
    if not unknown:
        return []
    what = f"has 'annotated' {case['annotated']} in dataset.json, and the label values are {foreground}"
    return [Problem("label values", case["label"], what, "list those of them that were annotated in this case")]


def header_problems(header: Header) -> list[Problem]:
    """Warnings about the position and size of the voxels in a header."""
    problems = []

    def warn(check: str, what: str, remedy: str) -> None:
        problems.append(Problem(check, header.path, what, remedy, level="warning"))

    spacing = header.spacing
    rounded = tuple(float(f"{edge:.4g}") for edge in spacing)
    if header.units in (1, 3):
        unit = {1: "metres", 3: "micrometres"}[header.units]
        warn("spacing", f"gives its voxel size in {unit}, which is read as mm", "write it in mm")
    elif spacing.min() < LEAST_SPACING or spacing.max() > MOST_SPACING:
        warn("spacing", f"has voxels of {rounded} mm", "check the unit of its header, which must be mm")
    if header.sform_code <= 0 and header.qform_code <= 0:
        warn("orientation", "does not say how it lies (sform_code and qform_code are 0)", "make sure that it is RAS")
    elif header.sform_code > 0 and header.qform is not None:
        shape = header.shape[:3]
        offset = np.abs(corners(header.affine, shape) - corners(header.qform, shape)).max()
        if offset > AFFINE_TOLERANCE * spacing.min():
            what = f"has an sform and a qform that lie {offset:.1f} mm apart; the sform is used, as in nibabel"
            warn("orientation", what, "make them equal if other programs show it elsewhere")
    if header.sform_code > 0 and not np.allclose(np.abs(header.pixdim), spacing, rtol=SPACING_TOLERANCE):
        what = f"has pixdim {header.pixdim} and voxels of {rounded} mm by its sform; the sform is used"
        warn("spacing", what, "correct the one that is wrong")
    return problems


def _intensity_problems(image: Contents) -> list[Problem]:
    path = image.header.path
    if image.not_finite:
        what = f"has {image.not_finite} voxels that are NaN or infinite"
        return [Problem("intensities", path, what, "replace them, for example by the value of the background")]
    for number, channel in enumerate(image.channels):
        if channel.minimum == channel.maximum:
            which = f"channel {number} (from 0) " if len(image.channels) > 1 else ""
            what = f"is {channel.minimum:g} in every voxel" if not which else f"has {which}of {channel.minimum:g} alone"
            return [Problem("intensities", path, what, "export it again, or take the case out of dataset.json")]
    return []


def _modality_problems(images: list[Contents]) -> list[Problem]:
    first = images[0].header
    for other in (image.header for image in images[1:]):
        if other.shape[:3] != first.shape[:3] or not np.allclose(other.affine, first.affine, rtol=1e-4, atol=1e-3):
            what = f"is not on the grid of {first.path} (shapes {other.shape} and {first.shape})"
            return [Problem("affine", other.path, what, "resample the modalities of a case to one grid")]
    return []


def _label_problems(label: Contents, image: Header | None, label_coding: LabelCoding | None) -> list[Problem]:
    header = label.header
    problems = []
    if image is not None:
        shape = image.shape[:3]
        if header.shape[:3] != shape or header.shape[3:] not in ((), (1,)):
            what = f"has shape {header.shape} and its image {image.path} has {shape}"
            return [Problem("shape", header.path, what, "they must be equal; check that they are of the same case")]
        offset = np.abs(corners(header.affine, shape) - corners(image.affine, shape)).max()
        if offset > AFFINE_TOLERANCE * image.spacing.min():
            what = f"lies up to {offset:.1f} mm away from its image {image.path} by their affines"
            remedy = "resample the label onto the image, or copy the image's header to it"
            problems.append(Problem("affine", header.path, what, remedy))
    return problems + _value_problems(label, label_coding)


def _value_problems(label: Contents, label_coding: LabelCoding | None) -> list[Problem]:
    def problem(what: str, remedy: str, check: str = "label values", level: str = "error") -> list[Problem]:
        return [Problem(check, label.header.path, what, remedy, level=level)]

    if label.not_finite:
        return problem(f"has {label.not_finite} voxels that are NaN or infinite", "replace them by 0 or their class")
    if broken := [value for value in label.values if value != round(value)]:
        what = f"has label values {broken[:5]}, which are not whole numbers"
        return problem(what, "resample labels by nearest neighbour, and check that it is not the image")
    allowed = label_coding.accepted if label_coding else None
    unexpected = [int(v) for v in label.values if (v < 0 if allowed is None else v not in allowed)]
    what = (
        f"has label values {unexpected[:5]} and {'none below 0 is' if allowed is None else f'{allowed} are'} expected"
    )
    if len(unexpected) > MANY_VALUES:
        what += f", and has {len(unexpected) - 5} more"
        return problem(what, "check in dataset.json that image and label are not swapped")
    if unexpected:
        return problem(
            what,
            "set num_classes to the number of foreground classes, ignore_value to a value for what nobody annotated, "
            "or renumber the labels",
        )
    ignored = label_coding.ignore_value if label_coding else None
    if not any(value for value in label.values if value != ignored):
        remedy = "check it, and take the case out if its object was not drawn"
        return problem("has no foreground voxel", remedy, "empty label", "warning")
    return []


def corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Positions (3, 8), mm, of the eight corner voxels of a volume."""
    grid = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    return affine[:3, :3] @ grid + affine[:3, 3:]
