"""Transform accuracy: the distance transforms against scipy's exact one on real label patches.

    python -m benchmarks.transform_accuracy --dataset_dir DIR [--cases 16]

For the central 112x112x80 patch of each label: the error of the unsigned distance outside the object at half resolution
in voxels, the correlation of the normalised signed map with the exact one at full resolution, and the Dice of mask ->
map -> mask (DBiSL Table 7).
"""

from __future__ import annotations

from collections.abc import Callable
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


def central_patch(path: str | Path) -> torch.Tensor:
    """The middle of a label as (1, 1, 112, 112, 80), 0 or 1."""
    label = nibabel.nifti1.load(path).get_fdata() > 0
    starts = [max(0, (extent - size) // 2) for extent, size in zip(label.shape, PATCH)]
    return torch.tensor(label[tuple(slice(a, a + size) for a, size in zip(starts, PATCH))]).float()[None, None]


def exact_map(mask: np.ndarray) -> np.ndarray:
    """minmax(DT outside) - minmax(DT inside) by scipy, (H, W, D), [-1, 1]."""
    outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
    return outside / outside.max() - inside / inside.max()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def main(dataset_dir: str, cases: int = 16) -> None:
    """Prints a table over the first ``cases`` labels of ``dataset_dir``."""
    patches = [central_patch(case["label"]) for case in Datalist(dataset_dir).training[:cases]]
    print("| transform | factor | error (voxels): mean | largest | correlation | Dice of mask -> map -> mask |")
    print("|---|---|---|---|---|---|")
    for name, build in TRANSFORMS.items():
        for factor in (1, 0.5):
            operator, rows = SegmentationToDistance(build(), factor=factor), []
            for patch in patches:
                mask = patch[0, 0].numpy() > 0.5
                with torch.no_grad():
                    signed = operator(patch)[0, 0].numpy()
                    seeds = (patch if factor == 1 else operator._downsample(patch) > 0.5).float()
                    error = operator.transform(seeds)[0, 0].numpy() - distance_transform_edt(seeds[0, 0].numpy() < 0.5)
                correlation = np.corrcoef(signed.ravel(), exact_map(mask).ravel())[0, 1]
                rows.append((np.abs(error).mean(), np.abs(error).max(), correlation, dice(signed < 0, mask)))
            mean, largest, correlation, overlap = np.array(rows).T
            print(
                f"| {name} | {factor} | {mean.mean():.3f} | {largest.max():.2f} "
                f"| {correlation.mean():.4f} | {overlap.mean():.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    fire.Fire(main)
