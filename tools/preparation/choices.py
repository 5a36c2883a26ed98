"""Choices: the rules by which a plan follows from the fingerprints, each with its reason in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from scripts.data import DataError
from scripts.data.laterality import SIDE_AXIS, paired_by_place, told_by_side
from scripts.preflight.across import TURNABLE

from .fingerprint import PERCENTILES, Fingerprint
from .memory import FLOAT, training_bytes

STEP = 16  # patches are multiples of it, since the network halves the resolution four times
EQUAL_SPACING = 0.01  # relative
# A CT scanner's air is -1000 HU; no other modality goes that far below 0.
CT_LOW = -200
SKULL_STRIPPED = 0.3  # part of voxels that are exactly 0
MARGIN = 1.5  # patch over object
WHOLE_IN = 95  # % of the labeled cases; of up to twenty, all
# Of fewer filters dropout leaves too few for a distance; docs/methods/dbisl.md has the measurements of 8 and 16.
FILTERS_FOR_DROPOUT = 16
# The augmentation of configs/train.json without its quarter turns.
FLIPS = [
    {
        "_target_": "RandFlipd",
        "keys": ["image", "label", "distance"],
        "prob": 0.5,
        "spatial_axis": axis,
        "allow_missing_keys": True,
    }
    for axis in (0, 1)
]
# Random crops are left alone as long as they cover this part of a volume.
COVERED = 0.25
FOREGROUND_CROPS = 0.5
FILTERS = {"cpu": (8,), "gpu": (16, 8)}
BATCHES = ((2, 2), (1, 1))
# On a CPU time runs out long before memory.
CPU_PATCH_VOXELS = 64**3
# A smaller patch than this is only accepted with the fewest filters and crops.
SMALL_PATCH_VOXELS = 48**3
# Part of the memory that a prediction may fill: measured peaks were up to a tenth above theirs.
USABLE_MEMORY = 0.85


@dataclass(frozen=True)
class NetworkChoice:
    """Patch, filters and batch that fit the memory."""

    patch_size: list[int]
    base_filters: int
    batch: tuple[int, int]  # labeled, unlabeled crops
    memory: float  # bytes


def choose_spacing(cases: Sequence[Fingerprint]) -> tuple[list[float] | None, str]:
    """The median spacing, mm, or None where all volumes have the same."""
    spacings = np.array([case.spacing for case in cases])
    median = np.median(spacings, axis=0)
    text = " x ".join(f"{value:.3g}" for value in median)
    if np.abs(spacings / median - 1).max() <= EQUAL_SPACING:
        return None, f"no resampling: all volumes have {text} mm"
    low, high = (" x ".join(f"{value:.3g}" for value in edge) for edge in (spacings.min(axis=0), spacings.max(axis=0)))
    return [round(float(v), 4) for v in median], f"the median, {text} mm; volumes range from {low} to {high} mm"


def choose_names(
    cases: Sequence[Fingerprint], names: list[str] | None, num_classes: int
) -> tuple[list[str] | None, str | None]:
    """Names of the classes, and in words which of them only their side tells apart; None where there is none.

    Classes without names are called by their side where their shape and place show a pair, since inference knows of it
    by the names alone.

    Args:
        cases: all of the training; those with a label are looked at.
        names: of dataset.json, or None.
        num_classes: foreground classes, the label values 1, 2, ...
    """
    moments = [case.moments for case in cases if case.moments]
    told = told_by_side(names, moments)
    if told and names is None:
        names = [f"class {value}" for value in range(1, num_classes + 1)]
        for left, right in paired_by_place(moments):
            names[left - 1], names[right - 1] = (f"{side} {left}-{right}" for side in ("left", "right"))
        told += f" (now called {', '.join(names)})"
    return names, told


def choose_augmentation(
    cases: Sequence[Fingerprint], spacing: Sequence[float] | None, sides: str | None = None
) -> tuple[list[dict[str, Any]], str] | None:
    """Flips alone, and why, where quarter turns of the axes 0 and 1 would swap thick and thin; else None, no choice.

    Args:
        cases: all of the training.
        spacing: mm, to which they are resampled; None where all have the same.
        sides: which classes only their side tells apart, in words; left and right are not mirrored then.
    """
    if sides:
        kept = [flip for flip in FLIPS if flip["spatial_axis"] != SIDE_AXIS]
        return kept, (
            f"no left-right mirror images and no quarter turns: {sides}; leave axis 0 out of flip_axes at inference, "
            "too (docs/how_to/left_and_right.md)"
        )
    first, second = (np.median([case.spacing for case in cases], axis=0) if spacing is None else spacing)[:2]
    factor = max(first, second) / min(first, second)
    if factor <= TURNABLE:
        return None
    return FLIPS, (
        f"flips without quarter turns, which would swap axis 0 of {first:.3g} mm and axis 1 of {second:.3g} mm"
    )


def choose_dropout(base_filters: int) -> tuple[float, str] | None:
    """No dropout, and why, where there are few filters; else None, which leaves that of configs/train.json."""
    if base_filters >= FILTERS_FOR_DROPOUT:
        return None
    return 0.0, (
        f"half of {base_filters} filters are too few for a distance, and DBiSL would lose what it gains "
        "(docs/methods/dbisl.md)"
    )


def guess_modality(cases: Sequence[Fingerprint], declared: Sequence[str]) -> tuple[str, str]:
    """ "ct" or "mr", from what dataset.json declares for the channels, or else from the darkest voxels."""
    if declared and any(declared) and not all(name.isdigit() for name in declared):
        called_ct = [name.strip().lower().startswith("ct") for name in declared]
        if all(called_ct) or not any(called_ct):
            return ("ct" if all(called_ct) else "mr"), f"dataset.json says {', '.join(declared)}"
    low = float(np.median([case.low for case in cases]))
    is_ct = low <= CT_LOW
    return ("ct" if is_ct else "mr"), f"the darkest {PERCENTILES[0]} % of voxels lie below {low:.0f}, " + (
        "which only CT has" if is_ct else f"and in CT below {CT_LOW}"
    )


def choose_intensity(cases: Sequence[Fingerprint], modality: str) -> tuple[list[int] | None, bool, str]:
    """Intensity window, whether the z-score leaves zeros out, and why."""
    if modality == "ct":
        inside = np.concatenate([case.foreground for case in cases])
        low, high = np.percentile(inside, PERCENTILES)
        window = [int(np.floor(low / 5) * 5), int(np.ceil(high / 5) * 5)]
        if window[0] == window[1]:
            window[1] += 5
        return window, False, f"HU of the labeled foreground, percentiles {PERCENTILES}; then a z-score"
    zeros = float(np.median([case.zeros for case in cases]))
    if zeros >= SKULL_STRIPPED:
        return None, True, f"z-score over the voxels that are not 0, since {zeros:.0%} are (skull-stripped, or masked)"
    return None, False, "z-score over the whole volume"


def volume_shape(cases: Sequence[Fingerprint], spacing: Sequence[float] | None) -> np.ndarray:
    """Median shape (3,) of the volumes in voxels of ``spacing``, mm, or of their own."""
    return np.median([case.shape * (case.spacing / spacing if spacing else 1) for case in cases], axis=0)


def object_shape(cases: Sequence[Fingerprint], spacing: Sequence[float] | None) -> np.ndarray:
    """Median shape (3,) of the box around the foreground of the labeled cases, in voxels of ``spacing`` or their own.

    Raises:
        DataError: when no labeled case has any foreground.
    """
    shapes = [case.extent / (spacing or case.spacing) for case in cases if case.extent is not None]
    if not shapes:
        raise DataError("the labels of all labeled cases are empty: a plan needs at least one with foreground.")
    return np.median(shapes, axis=0)


def whole_object(cases: Sequence[Fingerprint], spacing: Sequence[float] | None) -> np.ndarray:
    """Shape (3,), voxels as in :func:`object_shape`, that holds the whole object in ``WHOLE_IN`` % of the cases."""
    shapes = [case.extent / (spacing or case.spacing) for case in cases if case.extent is not None]
    return np.percentile(shapes, WHOLE_IN, axis=0, method="higher")


def nearest_patch(volume: np.ndarray, whole: np.ndarray) -> list[int]:
    """The patch nearest to a volume (3,), or above that where it holds the ``whole`` object (3,); voxels."""
    near = [max(STEP, int(n / STEP + 0.5) * STEP) for n in volume]
    return [max(n, int(np.ceil(extent / STEP)) * STEP) for n, extent in zip(near, whole)]


def largest_patch(
    volume: np.ndarray, target: np.ndarray, *, fits: Callable[[list[int]], bool], whole: np.ndarray | None = None
) -> list[int] | None:
    """The largest patch that ``fits`` accepts: at first the volume, then shortened where it exceeds ``target`` most.

    Args:
        volume: (3,) voxels.
        target: (3,) voxels that the patch should at least have, for its proportions.
        fits: of a patch, whether it may be used.
        whole: (3,) voxels; the patch is shortened to less only where no other axis can be shortened.

    Returns:
        Multiples of ``STEP``, or None when the smallest does not fit.
    """
    whole = np.zeros(3) if whole is None else whole
    patch = nearest_patch(volume, whole)
    while not fits(patch):
        shrinkable = [axis for axis in range(3) if patch[axis] > STEP]
        if not shrinkable:
            return None
        patch[max(shrinkable, key=lambda a: (patch[a] - STEP >= whole[a], patch[a] / target[a], patch[a]))] -= STEP
    return patch


def choose_network(
    volume: np.ndarray,
    target: np.ndarray,
    *,
    memory: float,
    device: str,
    in_channels: int,
    num_classes: int,
    whole: np.ndarray | None = None,
) -> tuple[NetworkChoice, str]:
    """Patch, filters and batch: as many filters and crops as leave memory for the whole object, or for a useful patch.

    Args:
        volume: median shape (3,), voxels.
        target: shape (3,) that the patch should have, voxels.
        memory: bytes for the training.
        device: "cpu" or "gpu".
        in_channels: channels of the image.
        num_classes: foreground classes.
        whole: shape (3,) that holds the whole object, voxels; by default what the target follows from.

    Raises:
        DataError: when the smallest network and patch does not fit.
    """
    whole = target / MARGIN if whole is None else whole
    useful = min(SMALL_PATCH_VOXELS, prod(np.minimum(volume, np.maximum(target, STEP))) / 2)
    found = []
    for filters, batch in [(f, b) for b in BATCHES for f in FILTERS[device]]:

        def predicted(patch: Sequence[int], filters: int = filters, batch: tuple[int, int] = batch) -> float:
            return training_bytes(
                patch_size=patch,
                crops=sum(batch),
                base_filters=filters,
                in_channels=in_channels,
                num_classes=num_classes,
                device=device,
            )

        def fits(patch: Sequence[int]) -> bool:
            too_slow = device == "cpu" and prod(patch) > CPU_PATCH_VOXELS
            return not too_slow and predicted(patch) <= USABLE_MEMORY * memory

        if patch := largest_patch(volume, target, fits=fits, whole=whole):
            found.append(NetworkChoice(patch, filters, batch, predicted(patch)))
    if not found:
        raise DataError(
            f"memory_gb is {memory / 1e9:.1f} and the smallest training needs "
            f"{predicted([STEP] * 3) / USABLE_MEMORY / 1e9:.1f}: raise it."
        )
    holding = [choice for choice in found if np.all(choice.patch_size >= whole)]
    large = [choice for choice in found if prod(choice.patch_size) >= useful]
    choice = [*holding, *large, found[-1]][0]
    return choice, _patch_reason(choice.patch_size, volume, target, whole, device=device, memory=memory)


def _patch_reason(
    patch: Sequence[int], volume: np.ndarray, target: np.ndarray, whole: np.ndarray, *, device: str, memory: float
) -> str:
    shares = " x ".join(f"{100 * p / t:.0f}" for p, t in zip(patch, target / MARGIN))
    if np.all(np.asarray(patch) >= volume):
        limit = "the whole volume"
    elif list(patch) == nearest_patch(volume, whole):
        limit = "the volume, " + " x ".join(f"{n:.4g}" for n in volume) + f" voxels, to the nearest multiples of {STEP}"
    elif device == "cpu" and prod(patch) > CPU_PATCH_VOXELS / 2:
        limit = "at most 64 x 64 x 64 voxels on a CPU, where time is short before memory is"
    else:
        limit = f"as large as {memory / 1e9:.1f} GB allow"
    return f"{limit}; {shares} % of the object's median extent"


def say_whether_whole(patch: Sequence[int], whole: np.ndarray, spacing: np.ndarray) -> str:
    """Whether a patch holds the whole object, and the spacing, mm, at which it would."""
    if np.all(np.asarray(patch) >= whole):
        return "holds the whole object, so that methods that mix crops (bcp, dbisl_mixed) suit"
    voxels = " x ".join(f"{np.ceil(n):.0f}" for n in whole)
    coarser = [float(f"{edge:.2g}") for edge in spacing * (whole / patch).max() * 1.05]
    return (
        f"less than the whole object, {voxels} voxels, which methods that mix crops (bcp, dbisl_mixed) need to gain "
        f'anything: for them give more memory, or --spacing "{coarser}"'
    )


def choose_foreground_crops(volume: np.ndarray, patch: Sequence[int]) -> tuple[float, str]:
    """The part of labeled crops that are centred on the foreground; unlabeled crops are random in any case."""
    covered = float(prod(np.minimum(patch, volume)) / prod(volume))
    if covered < COVERED:
        return FOREGROUND_CROPS, (
            f"a crop covers {covered:.0%} of a volume, so many would miss the object; " "unlabeled crops stay random"
        )
    return 0, f"random crops: each covers {covered:.0%} of a volume"


def choose_cache_rate(cases: Sequence[Fingerprint], spacing: Sequence[float] | None, left: float) -> tuple[float, str]:
    """The share of the training's volumes that lie in memory, in tenths, and why.

    Args:
        cases: all of the training.
        spacing: mm, to which they are resampled; None for their own.
        left: bytes of the machine's memory beside the training's.
    """
    size = 0.0
    for case in cases:
        voxels = float(np.prod(case.shape * (case.spacing / spacing if spacing else 1)))
        size += FLOAT * voxels * (case.channels + bool(case.label_values))
    text = f"the training volumes take {at_least_a_tenth(size / 1e9)} GB of the machine's memory besides"
    if size <= left:
        return 1.0, f"cache: {text}."
    rate = max(0.0, int(10 * left / size) / 10)
    return rate, (
        f"cache_rate {rate}: {text}, and {max(left, 0) / 1e9:.1f} GB are there; the others are read from files in "
        "output_dir, crop by crop, or give a coarser --spacing."
    )


def at_least_a_tenth(value: float) -> str:
    return f"{value:.1f}" if value >= 0.05 else "under 0.1"
