"""Round trip: mask -> signed distance map -> mask, offline by scipy and online (DBiSL Table 7, Figure 5).

    python -m benchmarks.round_trip --dataset_dir DIR [--cases 10] [--repeats 3]

For the central 112x112x80 patch of each label: the Dice of the mask that T_r2s makes of the map (Eq. 1) with the mask
itself, and the time of the map. Offline is what a program does before training: scipy's exact transform on the CPU,
with scipy's nearest-neighbour sampling of the mask where it is resampled. Dice figures are deterministic; times are
ratios to the offline map at full size, taken side by side in one run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import fire
import torch
from scipy.ndimage import zoom

from benchmarks.measure import medians
from benchmarks.transform_accuracy import central_patch, dice, exact_map
from scripts.data import Datalist
from scripts.distance import CascadedDistance, DistanceToSegmentation, ExactDistance, SegmentationToDistance

FACTORS = (1, 0.5, 0.3, 0.1)
Map = Callable[[torch.Tensor], torch.Tensor]


def offline_map(patch: torch.Tensor, factor: float) -> torch.Tensor:
    """The signed map of a mask (1, 1, H, W, D) by scipy alone, [-1, 1], negative inside.

    Below factor 1 the mask is sampled, and its map interpolated linearly back to full size.
    """
    mask = patch[0, 0].numpy() > 0.5
    if factor == 1:
        return torch.from_numpy(exact_map(mask))[None, None]
    small = exact_map(zoom(mask, factor, order=0))
    back = [full / extent for full, extent in zip(mask.shape, small.shape)]
    return torch.from_numpy(zoom(small, back, order=1))[None, None]


def ways() -> dict[str, Callable[[float], Map]]:
    """The ways to make a map, each for a factor."""
    return {
        "offline, scipy": lambda factor: partial(offline_map, factor=factor),
        "online, exact": lambda factor: SegmentationToDistance(ExactDistance(), factor=factor, subtract_first=False),
        "online, cascade": lambda factor: SegmentationToDistance(
            CascadedDistance(), factor=factor, subtract_first=False
        ),
    }


def round_trip(to_map: Map, patch: torch.Tensor) -> float:
    """Dice of a mask (1, 1, H, W, D) with what its map becomes behind the steep sigmoid."""
    with torch.no_grad():
        back = DistanceToSegmentation()(to_map(patch)) > 0.5
    return dice(back.numpy(), patch.numpy() > 0.5)


def rows(patches: list[torch.Tensor], repeats: int) -> list[dict[str, Any]]:
    """For every way and factor the mean and the smallest Dice, and the time as a ratio to the first row's."""

    def maps_of_all(to_map: Map) -> None:
        with torch.no_grad():
            for patch in patches:
                to_map(patch)

    maps = {(way, factor): build(factor) for way, build in ways().items() for factor in FACTORS}
    works = {str(key): partial(maps_of_all, to_map) for key, to_map in maps.items()}
    times = medians(works, repeats)
    reference = times[str(next(iter(maps)))]
    found: list[dict[str, Any]] = []
    for (way, factor), to_map in maps.items():
        scores = [round_trip(to_map, patch) for patch in patches]
        ratio = times[str((way, factor))] / reference
        found.append({"map": way, "factor": factor, "dice": fmean(scores), "lowest": min(scores), "ratio": ratio})
    return found


def main(dataset_dir: str, cases: int = 10, repeats: int = 3, threads: int = 1) -> None:
    """Prints a table over the first ``cases`` labels of ``dataset_dir``.

    Args:
        dataset_dir: folder of the data set's dataset.json.
        cases: labels, of the training list's beginning.
        repeats: of the times, of which the median is taken.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    patches = [central_patch(case["label"]) for case in Datalist(dataset_dir).training[:cases]]
    print("| map | factor | Dice of mask -> map -> mask (%) | lowest | time, ratio to scipy at full size | gradient |")
    print("|---" * 6 + "|")
    for row in rows(patches, repeats):
        gradient = "no" if row["map"] == "offline, scipy" else "yes"
        print(
            f"| {row['map']} | {row['factor']} | {100 * row['dice']:.2f} | {100 * row['lowest']:.2f} "
            f"| {row['ratio']:.2f} | {gradient} |"
        )


if __name__ == "__main__":
    fire.Fire(main)
