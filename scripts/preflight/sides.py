"""Sides: random mirror images that exchange two classes which only their side tells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import RandAxisFlipd, RandFlipd, RandRotate90d

from scripts.data import LabelCoding, Problem
from scripts.data.contents import Contents, File, Finding
from scripts.data.laterality import SIDE_AXIS, told_by_side

from .across import Lists


def side_problems(
    lists: Lists,
    found: Mapping[File, Finding],
    label_coding: LabelCoding | None,
    augmentation: Sequence[Any] | None,
) -> list[Problem]:
    """One warning where random mirror images exchange what only its side tells apart."""
    exchanging = [type(transform).__name__ for transform in augmentation or () if _exchanges_sides(transform)]
    labels = [found.get((case["label"], True)) for case in lists.get("labeled", ()) if "label" in case]
    ignored = label_coding.ignore_value if label_coding else None
    moments = [
        {value: own for value, own in label.moments.items() if value != ignored}
        for label in labels
        if isinstance(label, Contents)
    ]
    told = exchanging and told_by_side(label_coding.class_names if label_coding else None, moments)
    if not told:
        return []
    what = f"shows left as right, and {told}: that cannot be learned from mirror images that keep their labels"
    remedy = (
        "add configs/augmentations/keep_sides.json behind the other config files (docs/how_to/left_and_right.md), or "
        "leave it if something else tells them apart"
    )
    name = f"augmentation ({', '.join(dict.fromkeys(exchanging))})"
    return [Problem("left and right", name, what, remedy, level="warning")]


def _exchanges_sides(transform: Any) -> bool:
    """Whether a random transform mirrors over the axis of left and right, or turns it by 90 or 180 degrees."""
    if isinstance(transform, RandFlipd):
        axes = transform.flipper.spatial_axis
        return axes is None or SIDE_AXIS in (np.atleast_1d(axes) % 3)
    if isinstance(transform, RandRotate90d):
        return SIDE_AXIS in (axis % 3 for axis in transform.spatial_axes)
    return isinstance(transform, RandAxisFlipd)
