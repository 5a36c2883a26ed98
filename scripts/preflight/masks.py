"""Masks: files that are given as images and are masks by their content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scripts.data import Problem
from scripts.data.contents import Contents, File, Finding

from .across import Lists, images

# Affines of two files on one grid differ by no more, mm.
SAME_GRID = 1e-3
SHOWN_VALUES = 5


def mask_problems(lists: Lists, found: Mapping[File, Finding]) -> list[Problem]:
    """Images with few values in long runs: an error for one that lies on the grid of another image, else a warning.

    A channel of a case of several is left alone: a mask may be one.
    """
    # Where image and label are swapped, the label says so.
    single = {
        case["image"]
        for cases in lists.values()
        for case in cases
        if isinstance(case["image"], str) and not _swapped(case, found)
    }
    usable = [image for _, image in images(lists, found)]
    problems = []
    for image in usable:
        header = image.header
        if not image.mask_values or header.path not in single or header.channels > 1:
            continue
        twin = next((other for other in usable if not other.mask_values and _same_grid(image, other)), None)
        shown = ", ".join(map(str, image.mask_values[:SHOWN_VALUES]))
        shown += ", ..." if len(image.mask_values) > SHOWN_VALUES else ""
        what = f"is given as an image and looks like a mask (its values are {shown})"
        if twin is not None:
            what += f" on the grid of {twin.header.path}"
        remedy = "take it out of the images, or make it the label of its image"
        problems.append(Problem("mask", header.path, what, remedy, level="warning" if twin is None else "error"))
    return problems


def _swapped(case: Mapping[str, Any], found: Mapping[File, Finding]) -> bool:
    image, label = found.get((case["image"], False)), found.get((case.get("label", ""), True))
    if not isinstance(image, Contents) or not isinstance(label, Contents):
        return False
    return 0 < len(image.mask_values) < len(label.values)


def _same_grid(first: Contents, second: Contents) -> bool:
    same_shape = first.header.shape[:3] == second.header.shape[:3]
    return same_shape and np.allclose(first.header.affine, second.header.affine, atol=SAME_GRID)
