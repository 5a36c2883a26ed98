"""Contents: reads the voxels of a file once and keeps what the checks of a data set need."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .laterality import MOST_CLASSES, Moments, moments_of
from .nifti import Header, open_nifti, stored_voxels, unreadable
from .problems import FileError, Problem

# A file with more distinct values than this is not a label.
MOST_VALUES = 1000
# An image is taken for a mask if it has at most this many values and, going along the first axis, changes its value at
# most at this part of the voxels that do not have its commonest value: regions have long runs of one value, and what a
# scanner has measured does not.
MASK_VALUES, MASK_CHANGES = 256, 0.3
# Few voxels flatten an image if at most this part of them leaves the others less than this part of the whole's standard
# deviation: a z-score then has the same value everywhere else.
FEW_VOXELS, FLATTENED = 1e-4, 0.01
# So does a value of its own outside of what was scanned, such as -32768, if the others have less than this part.
PADDED = 0.1
Slices = tuple[np.ndarray, np.ndarray, np.ndarray]  # of each axis, the voxels of a class in every slice


@dataclass(frozen=True)
class Channel:
    """One channel of an image.

    Args:
        minimum, maximum: of the finite voxels; NaN if there is none.
        outliers: voxels so far off that a z-score leaves all others flat; 0 if there are none.
        padded: voxels of the smallest or largest value, if that is so far off all others that they are nearly flat.
        rest: minimum and maximum of the others.
    """

    minimum: float
    maximum: float
    outliers: int = 0
    padded: int = 0
    rest: tuple[float, float] = (np.nan, np.nan)


@dataclass(frozen=True)
class Contents:
    """A usable file: its header and a description of its voxels.

    Args:
        header: see :class:`~scripts.data.nifti.Header`.
        not_finite: number of voxels that are NaN or infinite as float32, the type that the network takes.
        digest: the same for two files if and only if they have the same shape and, as float32, the same voxels.
        values: distinct values of a label in ascending order, cut off behind :data:`MOST_VALUES`; () for an image.
        moments: size and place of every class of a label; empty for an image.
        slices: of every class of a label, its voxels in every slice along each axis; empty for an image.
        channels: of an image, one by one; () for a label.
        mask_values: those of an image that looks like a mask, in ascending order; () for any other.
    """

    header: Header
    not_finite: int
    digest: str
    values: tuple[float, ...] = ()
    moments: dict[int, Moments] = field(default_factory=dict, compare=False)
    slices: dict[int, Slices] = field(default_factory=dict, compare=False)
    channels: tuple[Channel, ...] = ()
    mask_values: tuple[float, ...] = ()


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
    flat = stored.reshape(-1, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = (flat if scaling == (1.0, 0.0) else flat * scaling[0] + scaling[1]).astype(np.float32)
    digest = hashlib.blake2b(repr(header.shape).encode(), digest_size=16)
    digest.update(numbers.data)
    facts: dict[str, Any] = {"not_finite": int(numbers.size - np.isfinite(numbers).sum()), "digest": digest.hexdigest()}
    if not is_label:
        # The channels are the last axis, the slowest in memory.
        channels = tuple(_channel(part) for part in np.split(numbers, header.channels))
        return Contents(header, **facts, channels=channels, mask_values=_mask_values(numbers))
    # Labels come in long runs of one value, whose first voxels are few to sort.
    starts = _starts(numbers)
    values = np.unique(numbers[starts])
    if len(values) <= MOST_VALUES and not facts["not_finite"]:
        label = numbers.reshape(header.shape, order="F")
        facts["moments"] = moments_of(label if label.ndim == 3 else label[..., 0], header.affine)
        facts["slices"] = _slices(numbers, starts, header.shape[:3])
    return Contents(header, **facts, values=tuple(values[np.isfinite(values)][:MOST_VALUES].tolist()))


def _starts(numbers: np.ndarray) -> np.ndarray:
    """The positions at which a run of one value begins."""
    return np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])


def _slices(numbers: np.ndarray, starts: np.ndarray, shape: Sequence[int]) -> dict[int, Slices]:
    """See :class:`Contents`; empty for too many classes. ``starts`` as of :func:`_starts`."""
    rows, columns, depth = shape
    starts = np.union1d(starts, np.arange(0, numbers.size, rows))  # so that each run lies in one line
    lengths = np.diff(np.r_[starts, numbers.size])
    foreground = numbers[starts] > 0
    starts, lengths = starts[foreground], lengths[foreground]
    classes, which = np.unique(numbers[starts], return_inverse=True)
    if len(classes) > MOST_CLASSES:
        return {}

    def counted(place: np.ndarray, size: int, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(which * size + place, weights, len(classes) * size).reshape(-1, size)

    line, first = np.divmod(starts, rows)
    begun_less_ended = counted(first, rows + 1) - counted(first + lengths, rows + 1)
    along = (
        begun_less_ended.cumsum(1)[:, :-1],
        counted(line % columns, columns, lengths),
        counted(line // columns % depth, depth, lengths),
    )
    return {int(value): (along[0][n], along[1][n], along[2][n]) for n, value in enumerate(classes)}


def _channel(numbers: np.ndarray) -> Channel:
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return Channel(np.nan, np.nan)
    low, high = float(finite.min()), float(finite.max())
    mean, spread = finite.mean(dtype=np.float64), finite.std(dtype=np.float64)
    farthest = max(high - mean, mean - low)
    if len(finite) < len(numbers) or spread == 0:
        return Channel(low, high)
    # Of FEW_VOXELS, one at least must be this far off to hold nearly all of the variance.
    if farthest >= 0.5 * spread / np.sqrt(FEW_VOXELS):
        rest = numbers[np.abs(numbers - mean) < farthest / 2]
        few = numbers.size - rest.size <= max(FEW_VOXELS * numbers.size, 1)
        if few and rest.std(dtype=np.float64) <= FLATTENED * spread:
            return Channel(low, high, outliers=numbers.size - rest.size, rest=(float(rest.min()), float(rest.max())))
    for extreme in (low, high):
        rest = numbers[numbers != extreme]
        # Not of a mask, whose values are all the same.
        if 0 < rest.std(dtype=np.float64) <= PADDED * spread and rest.size > FEW_VOXELS * numbers.size:
            return Channel(low, high, padded=numbers.size - rest.size, rest=(float(rest.min()), float(rest.max())))
    return Channel(low, high)


def _mask_values(numbers: np.ndarray) -> tuple[float, ...]:
    """The values of an image that looks like a mask, in ascending order; () for any other."""
    # What no mask has is seen in a few voxels already, without sorting all.
    sample = numbers[:: max(1, numbers.size // 4096)]
    if any(len(np.unique(part)) > MASK_VALUES for part in (sample, numbers[:65536])):
        return ()
    starts = _starts(numbers)
    if len(starts) > MASK_CHANGES * numbers.size + 1:
        return ()
    values, which = np.unique(numbers[starts], return_inverse=True)
    voxels, runs = np.bincount(which, np.diff(np.r_[starts, numbers.size])), np.bincount(which)
    others = np.arange(len(values)) != voxels.argmax()
    is_mask = len(values) <= MASK_VALUES and 0 < runs[others].sum() <= MASK_CHANGES * voxels[others].sum()
    return tuple(values.tolist()) if is_mask else ()
