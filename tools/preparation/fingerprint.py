"""Fingerprint: what a plan has to know of every volume: grid, intensities, and of labeled cases the foreground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel
import numpy as np

from scripts.data import check_cases, foreground_box, images_of
from scripts.data.laterality import Moments, moments_of
from scripts.data.nifti import open_nifti

from .every_case import for_every_case
from .volumes import load_volume

SAMPLES = 100_000  # voxels of a volume whose intensities are looked at
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Fingerprint:
    """One case, its axes in RAS order, as the network sees it.

    Attributes:
        shape: (3,) voxels.
        spacing: (3,) mm.
        channels: of the image.
        low, high: the percentiles ``PERCENTILES`` of the first channel.
        zeros: part of the first channel's voxels that are 0, [0, 1].
        extent: (3,) mm of the box around the foreground; None without a label, or with an empty one.
        label_values: that occur; empty without a label.
        foreground: sampled intensities of the first channel in the foreground; empty without.
        moments: size and place of every class; empty without a label.
        file: the first of the image.
    """

    shape: np.ndarray
    spacing: np.ndarray
    channels: int
    low: float
    high: float
    zeros: float
    extent: np.ndarray | None
    label_values: tuple[int, ...]
    foreground: np.ndarray
    moments: dict[int, Moments] = field(default_factory=dict)
    file: str = ""


def read_fingerprint(case: Mapping[str, Any], *, ignore_value: int | None = None) -> Fingerprint:
    """Reads the image, and the label if the case has that key; voxels of ``ignore_value`` are no foreground.

    Args:
        case: whose files :func:`scripts.data.check_cases` accepts.
        ignore_value: label value of voxels that nobody annotated.
    """
    files = images_of(case)
    array, affine = load_volume(files[0])
    # Of further files only the number of channels counts; their voxels are not read.
    channels = (array.shape[3] if array.ndim == 4 else 1) + sum(_channels(path) for path in files[1:])
    first = array[..., 0] if array.ndim == 4 else array
    axes = np.argsort(nibabel.io_orientation(affine)[:, 0])  # array axis of each RAS axis
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sample = _sample(first)
    extent, foreground = None, np.empty(0)
    values: tuple[int, ...] = ()
    moments: dict[int, Moments] = {}
    if "label" in case:
        label, _ = load_volume(case["label"])
        if ignore_value is not None:
            label = np.where(label == ignore_value, 0, label)
        values = tuple(int(value) for value in np.unique(label))
        moments = moments_of(label, affine)
        if box := foreground_box(label > 0):
            extent = (np.array([edge.stop - edge.start for edge in box]) * spacing)[axes]
            foreground = _sample(first[label > 0])
    return Fingerprint(
        shape=np.array(first.shape)[axes],
        spacing=spacing[axes],
        channels=channels,
        low=float(np.percentile(sample, PERCENTILES[0])),
        high=float(np.percentile(sample, PERCENTILES[1])),
        zeros=float(np.mean(sample == 0)),
        extent=extent,
        label_values=values,
        foreground=foreground,
        moments=moments,
        file=files[0],
    )


def read_fingerprints(cases: Sequence[dict[str, Any]], *, ignore_value: int | None = None) -> list[Fingerprint]:
    """:func:`read_fingerprint` of every case, several at a time, with a progress bar, after a check of its files.

    Raises:
        DataError: naming every case that cannot be used.
    """
    for with_label in (True, False):
        check_cases([case for case in cases if ("label" in case) == with_label], with_label=with_label)
    return for_every_case(lambda case: read_fingerprint(case, ignore_value=ignore_value), cases)


def _channels(path: str) -> int:
    return open_nifti(path)[0].channels


def _sample(array: np.ndarray) -> np.ndarray:
    """About ``SAMPLES`` voxels of ``array``, evenly spread in memory, as float64."""
    flat = array.ravel(order="K")
    return flat[:: max(1, flat.size // SAMPLES)].astype(np.float64)
