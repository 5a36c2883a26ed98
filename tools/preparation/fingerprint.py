"""Fingerprint: what a plan has to know of every volume: grid, intensities, and of labeled cases the foreground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel
import numpy as np

from scripts.data import DataError, images_of
from scripts.data.laterality import Moments, moments_of
from scripts.data.nifti import open_nifti

from .benchmark import bounding_box
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


def read_fingerprint(case: Mapping[str, Any], *, ignore_value: int | None = None) -> Fingerprint:
    """Reads the image, and the label if the case has that key; voxels of ``ignore_value`` are no foreground.

    Raises:
        DataError: when a file cannot be read, holds no usable numbers, or the label is not on the image's grid.
    """
    files = images_of(case)
    array, affine = load_volume(files[0])
    # Of further files only the number of channels counts; their voxels are not read.
    channels = (array.shape[3] if array.ndim == 4 else 1) + sum(_channels(path) for path in files[1:])
    first = array[..., 0] if array.ndim == 4 else array
    check_intensities(first, files[0])
    axes = np.argsort(nibabel.io_orientation(affine)[:, 0])  # array axis of each RAS axis
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sample = _sample(first)
    extent, foreground = None, np.empty(0)
    values: tuple[int, ...] = ()
    moments: dict[int, Moments] = {}
    if "label" in case:
        label, _ = load_volume(case["label"])
        if label.shape != first.shape:
            raise DataError(f"{case['label']} has shape {label.shape} and its image {first.shape}: they must be equal.")
        if ignore_value is not None:
            label = np.where(label == ignore_value, 0, label)
        values = label_values(label, case["label"])
        moments = moments_of(label, affine)
        if (label > 0).any():
            start, end = bounding_box(label > 0)
            extent = ((end - start) * spacing)[axes]
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
    )


def read_fingerprints(cases: Sequence[Mapping[str, Any]], *, ignore_value: int | None = None) -> list[Fingerprint]:
    """:func:`read_fingerprint` of every case, several at a time, with a progress bar.

    Raises:
        DataError: naming every case that cannot be used.
    """
    return for_every_case(lambda case: read_fingerprint(case, ignore_value=ignore_value), cases)


def check_intensities(image: np.ndarray, path: str) -> None:
    """Raises DataError for voxels that are NaN, infinite or all the same, of which no plan can be made."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite for the network
        finite = np.isfinite(image.astype(np.float32, copy=False) if image.dtype.kind == "f" else image)
    if not_finite := int(image.size - finite.sum()):
        raise DataError(
            f"{path} has {not_finite} voxels that are NaN or infinite: replace them, for example by the value of the "
            "background."
        )
    if image.min() == image.max():
        raise DataError(f"{path} is {image.min():g} in every voxel: export it again, or take the case out.")


def label_values(label: np.ndarray, path: str) -> tuple[int, ...]:
    """The values of a label, in ascending order.

    Raises:
        DataError: when one is NaN, a fraction or negative.
    """
    values = np.unique(label)
    odd = [value for value in values.tolist() if not (np.isfinite(value) and value >= 0 and value == int(value))]
    if odd:
        raise DataError(
            f"{path} has label values {odd[:5]}; expected are whole numbers from 0: check that it is a label and not "
            "the image, or give --ignore_value for a value of what nobody annotated."
        )
    return tuple(int(value) for value in values)


def _channels(path: str) -> int:
    return open_nifti(path)[0].channels


def _sample(array: np.ndarray) -> np.ndarray:
    """About ``SAMPLES`` voxels of ``array``, evenly spread in memory, as float64."""
    flat = array.ravel(order="K")
    return flat[:: max(1, flat.size // SAMPLES)].astype(np.float64)
