"""Contents: reads the voxels of a file once and keeps what the checks of a data set need."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .laterality import Moments, moments_of
from .nifti import Header, open_nifti, stored_voxels, unreadable
from .problems import FileError, Problem

# Voxels that are looked at together; bounds the memory beside that of the file itself.
CHUNK = 1 << 22
# A file with more distinct values than this is not a label.
MOST_VALUES = 1000
# An image is taken for a mask if it has at most this many values, all of them whole numbers, and, going along the first
# axis, changes its value at most at this part of the voxels that do not have its commonest value: regions have long
# runs of one value, and what a scanner has measured does not.
MASK_VALUES, MASK_CHANGES = 256, 0.3


# Few voxels flatten an image if at most this part of them leaves the others less than this part of the whole's standard
# deviation: a z-score then has the same value everywhere else.
FEW_VOXELS, FLATTENED = 1e-4, 0.01


@dataclass(frozen=True)
class Channel:
    """One channel of an image.

    Args:
        minimum, maximum: of the finite voxels; NaN if there is none.
        outliers: voxels so far off that a z-score leaves all others flat; 0 if there are none.
        rest: minimum and maximum of the others.
    """

    minimum: float
    maximum: float
    outliers: int = 0
    rest: tuple[float, float] = (np.nan, np.nan)


@dataclass(frozen=True)
class Contents:
    """A usable file: its header and a description of its voxels.

    Args:
        header: see :class:`~scripts.data.nifti.Header`.
        not_finite: number of voxels that are NaN or infinite as float32, the type that the network takes.
        minimum, maximum: of the finite voxels; NaN if there is none.
        digest: the same for two files if and only if they have the same shape and, as float32, the same voxels.
        values: distinct values of a label in ascending order, cut off behind :data:`MOST_VALUES`; () for an image.
        moments: size and place of every class of a label; empty for an image.
        channels: of an image, one by one; () for a label.
        mask_values: those of an image that looks like a mask, in ascending order; () for any other.
    """

    header: Header
    not_finite: int
    minimum: float
    maximum: float
    digest: str
    values: tuple[float, ...]
    moments: dict[int, Moments] = field(default_factory=dict, compare=False)
    channels: tuple[Channel, ...] = ()
    mask_values: tuple[int, ...] = ()


File = tuple[str, bool]  # a path, and whether it is a label
Finding = Contents | Problem
Version = tuple[File, int, int] | None  # None where there is no file to be seen
# What was found in this process, so that no file is read twice while it does not change.
_found: dict[Version, Finding] = {}


def inspect(file: File) -> Finding:
    """Reads a file; returns a problem instead of raising, so that it can run in another process."""
    path, is_label = file
    try:
        header, opened = open_nifti(path)
        try:
            proxy: Any = opened.dataobj  # nibabel annotates it as any array
            scaling = float(proxy.slope), float(proxy.inter)
            return _contents(header, stored_voxels(opened, path), scaling, is_label=is_label)
        except MemoryError as error:
            raise FileError(
                Problem("memory", path, f"with shape {header.shape} does not fit into memory", "free some, or cut it")
            ) from error
        except Exception as error:  # a truncated archive raises any of several types
            raise unreadable(path, error) from error
    except FileError as error:
        return error.problem


def inspect_once(
    files: Iterable[File], *, inspect_all: Callable[[list[File]], Iterable[Finding]]
) -> dict[File, Finding]:
    """Runs :func:`inspect` on the files that have not been inspected or have changed since.

    Args:
        files: paths, and whether each is a label.
        inspect_all: applies :func:`inspect` to a list of files, in parallel or not, and keeps the order.
    """
    files = list(dict.fromkeys(files))
    versions = {file: _version(file) for file in files}
    new = [file for file in files if versions[file] not in _found]
    findings = dict(zip(new, inspect_all(new))) if new else {}
    for file, finding in findings.items():
        if versions[file] is not None:
            _found[versions[file]] = finding
    return {file: findings[file] if file in findings else _found[versions[file]] for file in files}


def _version(file: File) -> Version:
    try:
        status = os.stat(file[0])
    except (OSError, ValueError):
        return None
    return file, status.st_size, status.st_mtime_ns


def _contents(header: Header, stored: np.ndarray, scaling: tuple[float, float], *, is_label: bool) -> Contents:
    slope, intercept = scaling
    scaled = scaling != (1.0, 0.0)
    digest = hashlib.blake2b(repr(header.shape).encode(), digest_size=16)
    not_finite = 0
    values: set[float] = set()
    runs = None if is_label else _Runs()
    channels = []

    def parts_of(flat: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            with np.errstate(over="ignore", invalid="ignore"):
                yield (part * slope + intercept if scaled else part).astype(np.float32)

    # The channels are the last axis, the slowest in memory.
    for flat in np.split(stored.reshape(-1, order="F"), header.channels):
        summary = _Summary()
        for numbers in parts_of(flat):
            digest.update(numbers.data)
            finite = np.isfinite(numbers)
            not_finite += int(numbers.size - finite.sum())
            summary.add(numbers, finite)
            if runs is not None:
                runs = runs.add(numbers)
            if is_label and len(values) <= MOST_VALUES:
                # Labels come in long runs of one value, whose first voxels are few to sort.
                first = np.ones(numbers.size, bool)
                np.not_equal(numbers[1:], numbers[:-1], out=first[1:])
                values.update(np.unique(numbers[first]).tolist())
        channels.append(summary.channel(parts_of(flat), flat.size))
    moments = {}
    if is_label and not not_finite and len(values) <= MOST_VALUES:
        # nibabel's voxels are (H, W, D) or (H, W, D, 1).
        whole = stored.reshape(header.shape[:3], order="F") if header.channels == 1 else stored[..., 0]
        moments = moments_of(whole * slope + intercept if scaled else whole, header.affine)
    with warnings.catch_warnings():  # of a minimum of nothing but NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        minimum = float(np.nanmin([channel.minimum for channel in channels]))
        maximum = float(np.nanmax([channel.maximum for channel in channels]))
    return Contents(
        header=header,
        not_finite=not_finite,
        minimum=minimum,
        maximum=maximum,
        digest=digest.hexdigest(),
        values=tuple(sorted(v for v in values if np.isfinite(v))[:MOST_VALUES]),
        moments=moments,
        channels=() if is_label else tuple(channels),
        mask_values=() if runs is None else runs.mask_values(),
    )


class _Summary:
    """Extrema, sum and sum of squares of the finite voxels of a channel."""

    def __init__(self) -> None:
        self.minimum, self.maximum = np.inf, -np.inf
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, numbers: np.ndarray, finite: np.ndarray) -> None:
        self.minimum = min(self.minimum, float(numbers.min(where=finite, initial=np.inf)))
        self.maximum = max(self.maximum, float(numbers.max(where=finite, initial=-np.inf)))
        self.count += int(finite.sum())
        self.total += float(numbers.sum(where=finite, dtype=np.float64))
        self.squares += float(np.square(numbers, dtype=np.float64).sum(where=finite))

    def channel(self, parts: Iterable[np.ndarray], size: int) -> Channel:
        """The statistics of the channel; reads ``parts`` again if a few outliers may dominate them."""
        if self.count == 0:
            return Channel(np.nan, np.nan)
        mean = self.total / self.count
        spread = np.sqrt(max(self.squares / self.count - mean**2, 0.0))
        farthest = max(self.maximum - mean, mean - self.minimum)
        # Of FEW_VOXELS, one at least must be this far off to hold nearly all of the variance.
        if self.count < size or spread == 0 or farthest < 0.5 * spread / np.sqrt(FEW_VOXELS):
            return Channel(self.minimum, self.maximum)
        rest = _Summary()
        for numbers in parts:
            near = np.abs(numbers - mean) < farthest / 2
            if near.any():
                rest.add(numbers, near)
        outliers = size - rest.count
        left = np.sqrt(max(rest.squares / max(rest.count, 1) - (rest.total / max(rest.count, 1)) ** 2, 0.0))
        if outliers > max(FEW_VOXELS * size, 1) or left > FLATTENED * spread:
            return Channel(self.minimum, self.maximum)
        return Channel(self.minimum, self.maximum, outliers, (rest.minimum, rest.maximum))


class _Runs:
    """Counts voxels and runs of every value of an image as long as it may be a mask."""

    def __init__(self) -> None:
        self.found: dict[float, list[int]] = {}  # value -> voxels, runs

    def add(self, numbers: np.ndarray) -> _Runs | None:
        """Counts a part of the image; None as soon as the image cannot be a mask."""
        # What no mask has is seen in a few voxels already, without sorting all.
        for part in (numbers[:: max(1, numbers.size // 4096)], numbers):
            if not np.array_equal(part, np.rint(part)) or len(np.unique(part[:65536])) > MASK_VALUES:
                return None
        starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
        lengths = np.diff(np.r_[starts, numbers.size])
        values, which = np.unique(numbers[starts], return_inverse=True)
        voxels, runs = np.bincount(which, lengths), np.bincount(which)
        for value, *counts in zip(values.tolist(), voxels.tolist(), runs.tolist()):
            before = self.found.get(value, [0, 0])
            self.found[value] = [before[0] + int(counts[0]), before[1] + counts[1]]
        return self if len(self.found) <= MASK_VALUES else None

    def mask_values(self) -> tuple[int, ...]:
        """The values if the image is a mask."""
        counts = sorted(self.found.values())[:-1]  # without the commonest
        voxels, runs = (sum(count[n] for count in counts) for n in range(2))
        return tuple(sorted(map(int, self.found))) if 0 < runs <= MASK_CHANGES * voxels else ()
