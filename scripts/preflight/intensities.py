"""Intensities: single voxels that are so far off that a z-score leaves all others the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scripts.data import Problem
from scripts.data.contents import File, Finding

from .across import Lists, images


def outlier_problems(
    lists: Lists, found: Mapping[File, Finding], intensity_window: Sequence[float] | None
) -> list[Problem]:
    """An error for each image that a few voxels make flat; none where ``intensity_window`` clips them."""
    if intensity_window:
        return []
    problems = []
    for _, image in images(lists, found):
        for number, channel in enumerate(image.channels):
            if not channel.outliers:
                continue
            which = f" in channel {number} (from 0)" if len(image.channels) > 1 else ""
            low, high = channel.rest
            what = (
                f"has {channel.outliers} voxel(s){which} far off, the extremes being {channel.minimum:g} and "
                f"{channel.maximum:g}, and {low:g} to {high:g} elsewhere: scaled to unit variance, all else is flat"
            )
            remedy = "replace those voxels, or clip them with intensity_window"
            problems.append(Problem("intensities", image.header.path, what, remedy))
    return problems
