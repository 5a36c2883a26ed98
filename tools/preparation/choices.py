"""Choices: the rules by which a plan follows from the fingerprints, each with its reason in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from scripts.data.laterality import SIDE_AXIS, paired_by_place, told_by_side
from scripts.preflight.grid import TURNABLE

from .fingerprint import PERCENTILES, Fingerprint
from .memory import FLOAT

EQUAL_SPACING = 0.01  # relative
# A CT scanner's air is -1000 HU; no other modality goes that far below 0.
CT_LOW = -200
SKULL_STRIPPED = 0.3  # part of voxels that are exactly 0
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
    only by the names.

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
    """Only flips, and why, where quarter turns of the axes 0 and 1 would swap thick and thin; else None, no choice.

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


def choose_dropout(base_filters: int) -> tuple[int, str] | None:
    """No dropout, and why, where there are few filters; else None, which leaves that of configs/train.json."""
    if base_filters >= FILTERS_FOR_DROPOUT:
        return None
    return 0, (
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
        return 1.0, text
    return max(0.0, int(10 * left / size) / 10), (
        f"{text}, and {max(left, 0) / 1e9:.1f} GB are there; the others are read from files in output_dir, crop by "
        "crop, or give a coarser --spacing"
    )


def at_least_a_tenth(value: float) -> str:
    return f"{value:.1f}" if value >= 0.05 else "under 0.1"
