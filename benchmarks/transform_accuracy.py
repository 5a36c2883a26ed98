"""Transform accuracy: the distance transforms against scipy's exact one on real label patches.

    python -m benchmarks.transform_accuracy --dataset_dir DIR [--cases 16] [--classes 2] [--every 2]

For the central patch of each label and class: the error of the unsigned distance outside the object in voxels of the
map's resolution, the correlation of the normalised signed map with the exact one at full resolution, and of mask -> map
-> mask (DBiSL Table 7) the Dice with the mask and the volume as a multiple of the mask's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fire
import nibabel
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import nn

from scripts.data import Datalist
from scripts.distance import CascadedDistance, ExactDistance, SegmentationToDistance

PATCH = (112, 112, 80)
TRANSFORMS: dict[str, Callable[[], nn.Module]] = {
    "cascade, s = 3": lambda: CascadedDistance(3),
    "cascade, s = 5": lambda: CascadedDistance(5),
    "cascade, s = 7": lambda: CascadedDistance(7),
    "exact": ExactDistance,
}


def central_patch(path: str | Path, value: int | None = None, every: int = 1) -> torch.Tensor:
    """The middle of a label as (1, 1, H, W, D), 0 or 1, at most 112x112x80 voxels.

    Args:
        path: of the label.
        value: of the class; None for all of them together.
        every: takes every so many voxels along each axis, for a coarser spacing.
    """
    volume = nibabel.nifti1.load(path).get_fdata()[::every, ::every, ::every]
    label = volume > 0 if value is None else volume == value
    starts = [max(0, (extent - size) // 2) for extent, size in zip(label.shape, PATCH)]
    return torch.tensor(label[tuple(slice(a, a + size) for a, size in zip(starts, PATCH))]).float()[None, None]


def exact_map(mask: np.ndarray) -> np.ndarray:
    """minmax(DT outside) - minmax(DT inside) by scipy, (H, W, D), [-1, 1]."""
    outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
    return outside / outside.max() - inside / inside.max()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def forms() -> Iterator[tuple[str, SegmentationToDistance]]:
    """Every transform at full and half resolution, and the order of Eq. 2-5 at the latter."""
    for name, build in TRANSFORMS.items():
        yield f"{name} | 1", SegmentationToDistance(build(), factor=1)
        yield f"{name} | 0.5", SegmentationToDistance(build(), factor=0.5)
        yield f"{name} | 0.5, in the paper's order", SegmentationToDistance(build(), factor=0.5, subtract_first=False)


def main(dataset_dir: str, cases: int = 16, classes: int = 1, every: int = 1) -> None:
    """Prints a table over the first ``cases`` labels of ``dataset_dir``.

    Args:
        dataset_dir: folder of the data set's dataset.json.
        cases: labels, of the training list's beginning.
        classes: classes that are looked at one by one; 1 takes all of a label as one.
        every: see :func:`central_patch`.
    """
    paths = [case["label"] for case in Datalist(dataset_dir).training[:cases]]
    values = [None] if classes == 1 else range(1, classes + 1)
    patches = [central_patch(path, value, every) for path in paths for value in values]
    print(
        "| transform | factor | error (voxels): mean | largest | correlation | Dice of mask -> map -> mask | volume |"
    )
    print("|---" * 7 + "|")
    for name, operator in forms():
        rows = []
        for patch in patches:
            mask = patch[0, 0].numpy() > 0.5
            with torch.no_grad():
                signed = operator(patch)[0, 0].numpy()
                seeds = (operator._volumes(patch) > 0.5).float()
                error = operator.transform(seeds)[0, 0].numpy() - distance_transform_edt(seeds[0, 0].numpy() < 0.5)
            correlation = np.corrcoef(signed.ravel(), exact_map(mask).ravel())[0, 1]
            overlap, volume = dice(signed < 0, mask), (signed < 0).sum() / mask.sum()
            rows.append((np.abs(error).mean(), np.abs(error).max(), correlation, overlap, volume))
        mean, largest, correlation, overlap, volume = np.array(rows).T
        print(
            f"| {name} | {mean.mean():.3f} | {largest.max():.2f} | {correlation.mean():.4f} | {overlap.mean():.4f} "
            f"| {volume.mean():.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    fire.Fire(main)
