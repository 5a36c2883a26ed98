"""Transform: forward and backward of the signed distance map against scipy's exact one, which has no gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from benchmarks.measure import medians, peak_megabytes, peak_on_gpu, row
from benchmarks.scale import SCALES, Shape
from scripts.distance import CascadedDistance, ExactDistance, SegmentationToDistance

SHAPE = SCALES["cpu"].maps
TRANSFORMS: dict[str, Callable[[], SegmentationToDistance]] = {
    "cascade, factor 0.5": lambda: SegmentationToDistance(CascadedDistance(), factor=0.5),
    "cascade, factor 1": lambda: SegmentationToDistance(CascadedDistance(), factor=1),
    "exact, factor 0.5": lambda: SegmentationToDistance(ExactDistance(), factor=0.5),
    "exact, factor 1": lambda: SegmentationToDistance(ExactDistance(), factor=1),
}


def blobs(batch: int = 4, classes: int = 1, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """Smooth random objects that fill a tenth of the patch each, as the left atrium does; 0 or 1."""
    random = np.random.default_rng(0)
    masks = torch.zeros(batch, classes, *shape)
    for mask in masks.flatten(0, 1):
        field = gaussian_filter(random.standard_normal(shape), 12 * shape[0] / SHAPE[0])
        mask[:] = torch.from_numpy(field > np.quantile(field, 0.9))
    return masks


def compact(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """One ball in a corner, from which the distances are long; (1, 1, H, W, D), 0 or 1."""
    grid = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    return (torch.stack([(x - 10) ** 2 for x in grid]).sum(0) < 64).float()[None, None]


def forward_backward(operator: SegmentationToDistance, masks: torch.Tensor) -> None:
    """The map of a confident prediction, and the gradient of a loss on it."""
    probability = (0.9 * masks + 0.05).requires_grad_()
    operator.to(masks.device)(probability).square().mean().backward()


def scipy_maps(masks: torch.Tensor) -> list[np.ndarray]:
    """Exact signed distance of every mask, min-max normalised on both sides (DBiSL Eq. 4)."""
    maps = []
    for mask in masks.flatten(0, 1).cpu().numpy() > 0.5:
        outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
        maps.append(outside / outside.max() - inside / inside.max())
    return maps


def scipy_distances(masks: torch.Tensor) -> None:
    """Exact distances outside and inside of every mask; nothing else."""
    for mask in masks.flatten(0, 1).cpu().numpy() > 0.5:
        distance_transform_edt(~mask)
        distance_transform_edt(mask)


def memory(name: str, classes: int) -> tuple[Callable, Callable]:
    """For ``peak_megabytes``; the name "scipy" is the reference."""
    work = scipy_distances if name == "scipy" else functools.partial(forward_backward, TRANSFORMS[name]())
    return (lambda: blobs(classes=classes)), work


def error(name: str, masks: torch.Tensor, expected: list[np.ndarray]) -> str:
    """How far the map is from scipy's, both in [-1, 1]."""
    difference = np.abs(TRANSFORMS[name]().to(masks.device)(masks).flatten(0, 1).cpu().numpy() - np.stack(expected))
    return f"error {difference.mean():.1e}, at most {difference.max():.1e}"


def peak(name: str, masks: torch.Tensor) -> float | None:
    """What the transform adds: in a process of its own on a CPU, at full size; None at another."""
    if masks.device.type == "cuda":
        return peak_on_gpu(functools.partial(forward_backward, TRANSFORMS[name](), masks))
    if masks.shape[2:] == SHAPE:
        return peak_megabytes("benchmarks.transform", f"memory({name!r}, {masks.shape[1]})")
    return None


def rows(
    repeats: int,
    *,
    classes: int = 1,
    names: list[str] | None = None,
    shape: Shape = SHAPE,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """A row for each transform."""
    masks, names = blobs(classes=classes, shape=shape).to(device), names or [*TRANSFORMS]
    works: dict[str, Callable] = {"scipy": functools.partial(scipy_distances, masks.cpu())}
    works |= {name: functools.partial(forward_backward, TRANSFORMS[name](), masks) for name in names}
    for work in works.values():
        work()  # what only a first call does
    times, expected = medians(works, repeats), scipy_maps(masks[:, :1])
    what = f"map, forward + backward, 4x{classes}x{'x'.join(map(str, shape))}"
    return [
        row(
            f"{what}: {name}",
            times[name],
            "scipy's exact distances, forward alone",
            times["scipy"],
            peak_mb=peak(name, masks),
            accuracy=error(name, masks[:, :1], expected),
        )
        for name in names
    ]


def growth_rows(repeats: int, *, sizes: Sequence[int] = (32, 64, 128)) -> list[dict[str, Any]]:
    """The exact map and scipy on a CPU where size and shape of the object change."""
    volumes = {f"{n}x{n}x{n}": blobs(1, 1, (n, n, n)) for n in sizes}
    volumes["112x112x80, a small ball in a corner"] = compact()
    found = []
    for name, masks in volumes.items():
        works: dict[str, Callable] = {"scipy": functools.partial(scipy_distances, masks)}
        for transform in ("exact, factor 1", "cascade, factor 0.5"):
            works[transform] = functools.partial(forward_backward, TRANSFORMS[transform](), masks)
        times = medians(works, repeats)
        found += [row(f"map of {name}: {t}", times[t], "scipy", times["scipy"]) for t in works if t != "scipy"]
    return found
