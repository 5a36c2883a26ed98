"""Unlikely: finds labels that are out of line: inverted, drawn on single slices only, or with two classes exchanged.

A label is compared with the other labels of its data set and with what an object can look like, never with its image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import prod
from typing import NamedTuple

import nibabel
import numpy as np

from .contents import Contents, Slices
from .problems import Problem

# Background surrounds an object. What covers as much of a volume's outer faces, and half of it, may be the background.
SURROUNDS = 0.9
# A share of foreground is out of line if its odds differ by this factor from the median of at least two others, and by
# as many of the ranges that hold the middle 80 % of the others. Of three cases drawn from a log-normal distribution
# with sigma 1, that happens in about 1 of 100 data sets; real objects vary less, lesions about as much.
ODDS, RANGES, LEAST_OTHERS = 20.0, 2.5, 2
# Slices in a row are so many times as wide as they are thick together only if the object is a sheet, or was drawn on
# these slices only. The ends of an object are small; so not all of its voxels have to be in such slices.
FLAT, IN_SHEETS = 4.0, 0.9
# Two classes are exchanged if one lies where the other does in at least four other cases: centres further apart than
# the classes are wide, within 60 degrees of one direction there, and of the opposite one here.
LEAST_ORDERED, COS = 4, 0.5
NAMED_SLICES = 5


class Label(NamedTuple):
    """The label of a case; ``annotated`` are the values that count, None for all."""

    contents: Contents
    annotated: Sequence[int] | None = None


def unlikely_labels(labels: Sequence[Label], *, ignore_value: int | None = None) -> Iterator[Problem]:
    """A warning for each label that is out of line.

    Args:
        labels: of all cases that have one, each once.
        ignore_value: label value of voxels that nobody annotated.
    """
    own = [_classes(label, ignore_value) for label in labels]
    flat = [_single_slices(label.contents, classes) for label, classes in zip(labels, own)]
    unknown = [ignore_value in label.contents.slices for label in labels]
    yield from (problem for problem, known in zip(flat, unknown) if problem and not known)
    usual = [n for n, problem in enumerate(flat) if not problem and own[n]]
    yield from _out_of_line([labels[n].contents for n in usual], [own[n] for n in usual], ignore_value)
    yield from _exchanged([labels[n].contents for n in usual], [own[n] for n in usual])


def _classes(label: Label, ignore_value: int | None) -> dict[int, Slices]:
    return {
        value: slices
        for value, slices in label.contents.slices.items()
        if value != ignore_value and (label.annotated is None or value in label.annotated)
    }


def _single_slices(label: Contents, classes: dict[int, Slices]) -> Problem | None:
    """Foreground, or a class, that is drawn on single slices: runs of slices along an axis, thin for their area."""
    spacing = label.header.spacing
    foreground = [np.sum(voxels, axis=0) for voxels in zip(*classes.values())]
    for which, slices in (("foreground", foreground), *((f"the value {value}", own) for value, own in classes.items())):
        for axis, voxels in enumerate(slices):
            drawn = np.flatnonzero(voxels)
            runs = np.split(drawn, np.flatnonzero(np.diff(drawn) > 1) + 1)
            widths = [np.sqrt(voxels[run].mean() * prod(np.delete(spacing, axis))) for run in runs]
            sheets = [run for run, width in zip(runs, widths) if width > FLAT * len(run) * spacing[axis]]
            if len(drawn) == len(voxels) or sum(voxels[run].sum() for run in sheets) < IN_SHEETS * voxels.sum():
                continue
            shown = ", ".join(map(str, drawn[:NAMED_SLICES])) + (", ..." if len(drawn) > NAMED_SLICES else "")
            what = (
                f"has {which} only in {len(drawn)} of {len(voxels)} slices along axis {axis} ("
                f"{_direction(label, axis)}; number {shown}, from 0), up to {max(widths):.3g} mm wide and "
                f"{spacing[axis]:.3g} mm thick"
            )
            remedy = (
                "if the other slices were not annotated, give their voxels a value of their own, such as 255, and set "
                "--ignore_value 255 (docs/how_to/partial_labels.md): as 0 they are learned as background"
            )
            return Problem("single slices", label.header.path, what, remedy, level="warning")
    return None


def _direction(label: Contents, axis: int) -> str:
    code = nibabel.aff2axcodes(label.header.affine)[axis]
    return {"R": "left-right", "L": "left-right", "A": "back-front", "P": "back-front"}.get(code, "feet-head")


def _out_of_line(
    labels: Sequence[Contents], own: Sequence[dict[int, Slices]], ignore_value: int | None
) -> Iterator[Problem]:
    """Labels whose share of foreground, or of one class, differs too much from that of the others or looks inverted."""
    shares: list[dict[int, float]] = []  # of every class, and of all of them at 0
    for label, classes in zip(labels, own):
        known = prod(label.header.shape[:3]) - (
            label.slices[ignore_value][0].sum() if ignore_value in label.slices else 0
        )
        each = {value: float(slices[0].sum() / known) for value, slices in classes.items()}
        shares.append({0: sum(each.values()), **each})
    for n, (label, classes) in enumerate(zip(labels, own)):
        background = next(
            (v for v, slices in classes.items() if shares[n][v] > 0.5 and _surrounds(label, slices)), None
        )
        for value, share in shares[n].items():
            others = [other[value] for other in shares[:n] + shares[n + 1 :] if value in other]
            unlike = _is_outlier(share, others)
            if not unlike and background is None:
                continue
            which = f"the value {value}" if value else "foreground"
            what = f"has {which} in {_percent(share)} of its voxels"
            if background is not None:
                what += f", and the value {background} on nearly all of its outer faces, where background should be"
                remedy = f"exchange the values 0 and {background} in the file if object and background are swapped"
            else:
                remedy = "check that the label is complete, belongs to its image and has the values of the others"
            if others:
                what += f" ({len(others)} other labels: median {_percent(float(np.median(others)))})"
            yield Problem("foreground", label.header.path, what, remedy, level="warning")
            break


def _surrounds(label: Contents, slices: Slices) -> bool:
    shape = label.header.shape[:3]
    faces = 2 * sum(prod(shape) / n for n in shape)
    return sum(int(voxels[0] + voxels[-1]) for voxels in slices) >= SURROUNDS * faces


def _is_outlier(share: float, others: Sequence[float]) -> bool:
    if len(others) < LEAST_OTHERS:
        return False
    odds = np.clip([share, *others], 1e-9, 1 - 1e-9)
    own, *rest = np.log(odds / (1 - odds))
    low, middle, high = np.percentile(rest, [10, 50, 90])
    return abs(own - middle) > max(np.log(ODDS), RANGES * (high - low))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _exchanged(labels: Sequence[Contents], own: Sequence[dict[int, Slices]]) -> Iterator[Problem]:
    """Labels in which two classes lie the other way round than in all others."""
    places = [{v: m for v, m in label.moments.items() if v in classes} for label, classes in zip(labels, own)]
    found: set[int] = set()
    for first, second in combinations(sorted({value for place in places for value in place}), 2):
        both = [n for n, place in enumerate(places) if first in place and second in place]
        if len(both) <= LEAST_ORDERED:
            continue
        ways = np.array([places[n][second].centre - places[n][first].centre for n in both])
        apart = np.linalg.norm(ways, axis=1)
        ways /= np.maximum(apart, 1e-9)[:, None]
        widths = [
            sum(np.sqrt(way @ places[n][v].covariance @ way) for v in (first, second)) for n, way in zip(both, ways)
        ]
        if (apart <= widths).any():
            continue
        along = ways @ (middle := np.median(ways, axis=0)) / max(float(np.linalg.norm(middle)), 1e-9)
        against = np.flatnonzero(along <= -COS)
        if len(against) == 1 and (np.delete(along, against) >= COS).all() and both[against[0]] not in found:
            found.add(n := both[against[0]])
            what = (
                f"has the values {first} and {second} the other way round than the {len(both) - 1} other labels that "
                "have both"
            )
            remedy = "exchange them if they were mixed up, or check how the file lies"
            yield Problem("exchanged classes", labels[n].header.path, what, remedy, level="warning")
