"""Laterality: finds pairs of classes that differ only in their side, by their names or by their shape and place.

A mirrored image shows the left one of such a pair where the right one would be, with the label of the left one: nothing
can be learned from that. So whatever mirrors left and right has to know of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .problems import DataError

# Axis of left and right in the orientation of the preprocessing (right, anterior, superior).
SIDE_AXIS = 0
# Words for left and right; those of up to three letters only count as a word of their own.
SIDES = [
    pair.split("/")
    for pair in (
        "left/right links/rechts linke/rechte gauche/droite gauche/droit sinistra/destra sinistro/destro "
        "sinister/dexter sinistra/dextra izquierda/derecha izquierdo/derecho esquerda/direita esquerdo/direito "
        "vänster/höger venstre/højre venstre/høyre lewy/prawy lewa/prawa левый/правый левая/правая левое/правое 左/右 "
        "l/r lt/rt lh/rh lft/rgt li/re izq/der sin/dex sin/dx sn/dx sx/dx"
    ).split()
]
SHORT = 3
# lkid and rkid, LAG and RAG: regular expressions, which mean a side only in two names that are otherwise alike.
FIRST_LETTERS = (r"\bl(?=[a-z]{2,3}\b)", r"\br(?=[a-z]{2,3}\b)")
# A label with more classes than this is looked at only by its names.
MOST_CLASSES = 256
# Moments are taken of about this many voxels along each axis.
GRID = 128
# What counts as a mirror image: the smaller volume over the larger, the offset across the other two axes over the
# distance between the sides, the difference of the mirrored covariances over their mean, and in how many cases.
LEAST_VOLUME, MOST_OFFSET, MOST_DIFFERENCE, LEAST_CASES = 0.5, 0.5, 0.5, 0.75
# A class lies on one side of a volume if it is as many of its standard deviations off the middle: its mirror image is
# another place then.
OFF_THE_MIDDLE = 2.0


@dataclass(frozen=True)
class Moments:
    """Size and position of one class in one case.

    Args:
        volume: mm³.
        centre: (3,), mm, right, anterior, superior.
        covariance: (3, 3), mm², of its voxels.
        offset: mm, to the right of the middle of the volume.
    """

    volume: float
    centre: np.ndarray
    covariance: np.ndarray
    offset: float = 0.0


def moments_of(label: np.ndarray, affine: np.ndarray) -> dict[int, Moments]:
    """The moments of every class of ``label`` (H, W, D) except 0; none if it has more than ``MOST_CLASSES`` values.

    Args:
        label: whole numbers; others are left out.
        affine: (4, 4), mm, voxel to RAS.
    """
    steps = [max(1, n // GRID) for n in label.shape]
    coarse = label[tuple(slice(None, None, step) for step in steps)]
    voxels = np.argwhere(coarse > 0)
    values = coarse[coarse > 0]
    if len(classes := np.unique(values)) > MOST_CLASSES:
        return {}
    places = (voxels * steps) @ affine[:3, :3].T + affine[:3, 3]
    middle = (affine[:3, :3] @ (np.array(label.shape) - 1) / 2 + affine[:3, 3])[SIDE_AXIS]
    voxel = abs(np.linalg.det(affine[:3, :3])) * float(np.prod(steps))
    found = {}
    for value in classes:
        own = places[values == value]
        if value == int(value) and len(own) > 1:
            centre = own.mean(0)
            offset = float(centre[SIDE_AXIS] - middle)
            found[int(value)] = Moments(len(own) * voxel, centre, np.cov(own.T, bias=True), offset)
    return found


def paired_by_name(names: Sequence[str] | None) -> list[tuple[int, int]]:
    """Positions of the left and the right one of every pair of names that differ only by a word for the side.

    Example:
        >>> paired_by_name(["kidney_L", "liver", "kidney_R"])
        [(0, 2)]
    """
    names = [] if names is None or isinstance(names, str) else [str(name) for name in names]
    pairs: dict[tuple[int, int], None] = {}
    for left, right in (*SIDES, FIRST_LETTERS):
        without_right = {bare: n for n, name in enumerate(names) if (bare := _without(name, right)) is not None}
        for n, name in enumerate(names):
            bare = _without(name, left)
            if bare in without_right and without_right[bare] != n:
                pairs[n, without_right[bare]] = None
    return list(pairs)


def _without(name: str, side: str) -> str | None:
    """The words of ``name`` (kidneyL, LKidney have two) without ``side``, sorted; None if it is not among them."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=\b[LR])(?=[A-Z][a-z])", " ", name)
    words = re.sub(r"[\W_]+", " ", words).strip().lower()
    pattern = rf"\b{side}\b" if side.isascii() and len(side) <= SHORT else side
    bare, count = re.subn(pattern, " ", words)
    return " ".join(sorted(bare.split())) if count else None


def paired_by_place(cases: Sequence[Mapping[int, Moments]]) -> list[tuple[int, int]]:
    """Label values of the left and the right class of every pair that looks mirrored in the labels of the cases.

    Args:
        cases: of each labeled case, what :func:`moments_of` returns.
    """
    values = sorted({value for case in cases for value in case})
    scored = []
    for a, b in combinations(values, 2):
        both = [(case[a], case[b]) for case in cases if a in case and b in case]
        differences = [_difference(first, second) for first, second in both]
        mirrored = [n for n, difference in enumerate(differences) if difference is not None]
        if not both or len(mirrored) < LEAST_CASES * len(both):
            continue
        a_is_left = [both[n][0].centre[SIDE_AXIS] < both[n][1].centre[SIDE_AXIS] for n in mirrored]
        if len(set(a_is_left)) == 1:
            scored.append((np.median([differences[n] for n in mirrored]), (a, b) if a_is_left[0] else (b, a)))
    pairs: list[tuple[int, int]] = []
    for _, pair in sorted(scored):
        if not any(set(pair) & set(other) for other in pairs):
            pairs.append(pair)
    return sorted(pairs)


def _difference(first: Moments, second: Moments) -> float | None:
    """How much two classes of one case differ from mirror images of each other; None if they clearly are none."""
    if min(first.volume, second.volume) < LEAST_VOLUME * max(first.volume, second.volume):
        return None
    apart = np.abs(first.centre - second.centre)
    spread = np.sqrt(first.covariance[SIDE_AXIS, SIDE_AXIS]) + np.sqrt(second.covariance[SIDE_AXIS, SIDE_AXIS])
    offset = np.delete(apart, SIDE_AXIS).max()
    if apart[SIDE_AXIS] < spread or offset > MOST_OFFSET * apart[SIDE_AXIS]:
        return None
    mirror = np.ones((3, 3))
    mirror[SIDE_AXIS] *= -1
    mirror[:, SIDE_AXIS] *= -1
    mirrored, other = mirror * first.covariance, second.covariance
    difference = 2 * np.linalg.norm(mirrored - other) / max(float(np.linalg.norm(mirrored + other)), 1e-9)
    return float(difference + offset / apart[SIDE_AXIS]) if difference <= MOST_DIFFERENCE else None


def alone_on_one_side(names: Sequence[str] | None, cases: Sequence[Mapping[int, Moments]]) -> list[int]:
    """Positions of the classes that are called after a side, have no partner, and lie on one side of the volumes.

    Of those the other side is background where the volume shows it: a left kidney without the right one. A class that
    lies in the middle, as a left atrium does, or whose volumes are crops around it, is none of them.
    """
    paired = {n for pair in paired_by_name(names) for n in pair}
    found = []
    for n, name in enumerate(names or ()):
        if n in paired or not any(_without(str(name), side) is not None for pair in SIDES for side in pair):
            continue
        own = [case[n + 1] for case in cases if n + 1 in case]
        off = [m.offset for m in own if abs(m.offset) > OFF_THE_MIDDLE * np.sqrt(m.covariance[SIDE_AXIS, SIDE_AXIS])]
        if off and len(off) >= LEAST_CASES * len(own) and len(set(np.sign(off))) == 1:
            found.append(n)
    return found


def told_by_side(names: Sequence[str] | None, cases: Sequence[Mapping[int, Moments]]) -> str | None:
    """Which classes only their side tells from each other, or from the background, in words; None if there are none.

    ``names`` are those of the label values 1, 2, ..., or None; ``cases`` as in :func:`paired_by_place`.
    """
    if names and (pairs := paired_by_name(names)):
        return f"{names[pairs[0][0]]!r} and {names[pairs[0][1]]!r} differ by their side only"
    if pairs := paired_by_place(cases):
        first, second = (repr(names[v - 1]) if names and v <= len(names) else f"label value {v}" for v in pairs[0])
        return f"{first} and {second} lie like mirror images and differ by their side only"
    if names and (alone := alone_on_one_side(names, cases)):
        return f"{names[alone[0]]!r} lies on one side, and what it looks like on the other side is background"
    return None


def side_kept(flip_axes: Sequence[int], class_names: Sequence[str] | None) -> Sequence[int]:
    """Returns ``flip_axes`` unchanged if mirroring along them does not exchange two classes.

    Raises:
        DataError: when axis 0 is one of them and ``class_names`` has classes that only their side tells apart.
    """
    pairs = paired_by_name(class_names)
    if pairs and class_names and isinstance(flip_axes, (list, tuple)) and SIDE_AXIS in flip_axes:
        left, right = (class_names[n] for n in pairs[0])
        raise DataError(
            f"flip_axes is {list(flip_axes)} and class_names has {left!r} and {right!r}: a mirror image over axis "
            f"{SIDE_AXIS} (left and right) would show each as the other. Leave axis {SIDE_AXIS} out."
        )
    return flip_axes
