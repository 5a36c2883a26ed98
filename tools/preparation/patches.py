"""Patch: the patch, the filters and the batch that fit the memory and the object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from scripts.data import DataError

from .fingerprint import Fingerprint
from .memory import training_bytes

STEP = 16  # patches are multiples of it, since the network halves the resolution four times
MARGIN = 1.5  # patch over object
WHOLE_IN = 95  # % of the labeled cases; of up to twenty, all
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
    """Patch, filters and batch that fit the memory, and the patch that any memory would allow."""

    patch_size: list[int]
    base_filters: int
    batch: tuple[int, int]  # labeled, unlabeled crops
    memory: float  # bytes
    most: list[int]


def sizes_of(
    cases: Sequence[Fingerprint], spacing: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three shapes (3,), in voxels of ``spacing``, mm, or of each volume's own.

    Returns:
        that of the median volume; that which a patch should have, ``MARGIN`` times the median of the boxes around the
        foreground of the labeled cases, within the volume; that which holds the whole box in ``WHOLE_IN`` % of them.

    Raises:
        DataError: when no labeled case has any foreground.
    """
    volume = np.median([case.shape * (case.spacing / spacing if spacing else 1) for case in cases], axis=0)
    boxes = [case.extent / (spacing or case.spacing) for case in cases if case.extent is not None]
    if not boxes:
        raise DataError("the labels of all labeled cases are empty: a plan needs at least one with foreground.")
    whole = np.percentile(boxes, WHOLE_IN, axis=0, method="higher")
    return volume, np.minimum(MARGIN * np.median(boxes, axis=0), volume), whole


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

    def fast(patch: Sequence[int]) -> bool:
        return device != "cpu" or prod(patch) <= CPU_PATCH_VOXELS

    most = largest_patch(volume, target, fits=fast, whole=whole) or [STEP] * 3
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
            return fast(patch) and predicted(patch) <= USABLE_MEMORY * memory

        if patch := largest_patch(volume, target, fits=fits, whole=whole):
            found.append(NetworkChoice(patch, filters, batch, predicted(patch), most))
    if not found:
        raise DataError(
            f"memory_gb is {memory / 1e9:.1f} and the smallest training needs "
            f"{predicted([STEP] * 3) / USABLE_MEMORY / 1e9:.1f}: raise it."
        )
    holding = [choice for choice in found if np.all(choice.patch_size >= whole)]
    large = [choice for choice in found if prod(choice.patch_size) >= useful]
    choice = [*holding, *large, found[-1]][0]
    return choice, _patch_reason(choice, volume, target, whole, memory=memory)


def _patch_reason(
    choice: NetworkChoice, volume: np.ndarray, target: np.ndarray, whole: np.ndarray, *, memory: float
) -> str:
    patch = choice.patch_size
    shares = " x ".join(f"{100 * p / t:.0f}" for p, t in zip(patch, target / MARGIN))
    if np.all(np.asarray(patch) >= volume):
        limit = "the whole volume"
    elif patch == nearest_patch(volume, whole):
        limit = "the volume, " + " x ".join(f"{n:.4g}" for n in volume) + f" voxels, to the nearest multiples of {STEP}"
    elif patch == choice.most:
        limit = "at most 64 x 64 x 64 voxels on a CPU, where time is short before memory is"
    else:
        limit = f"as large as {memory / 1e9:.1f} GB allow"
    return f"{limit}; {shares} % of the object's median extent"


def say_whether_whole(choice: NetworkChoice, whole: np.ndarray, spacing: np.ndarray) -> str:
    """Whether a patch holds the whole object, and what would make it: memory, where it does not end before; spacing."""
    patch = choice.patch_size
    if np.all(np.asarray(patch) >= whole):
        return "holds the whole object, so that methods that mix crops (bcp, dbisl_mixed) suit"
    voxels = " x ".join(f"{np.ceil(n):.0f}" for n in whole)
    coarser = [float(f"{edge:.2g}") for edge in spacing * (whole / patch).max() * 1.05]
    memory = "more memory, or " if np.all(np.asarray(choice.most) >= whole) else ""
    return (
        f"less than the whole object, {voxels} voxels, which methods that mix crops (bcp, dbisl_mixed) need to gain "
        f'anything: for them give {memory}--spacing "{coarser}"'
    )
