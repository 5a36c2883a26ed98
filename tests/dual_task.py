"""Dual task: heads, labels and double-precision references that the tests of DTC and DTML share."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT, small
from monai.bundle import ConfigParser
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from scripts.distance import DistanceToSegmentation, ExactDistance, SegmentationToDistance
from scripts.methods import Loss

SHAPE = (4, 2, 8, 7, 6)
LABELED = 2
K = 10  # Far below the papers' 1500, so that the steep sigmoid has a gradient that finite precision can compare.


def line(*values: float) -> torch.Tensor:
    """One channel (1, 1, n, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1, 1)


def transformers(k: float = 1500) -> tuple[SegmentationToDistance, DistanceToSegmentation]:
    """The two task transforms as in configs/methods/dtc.json and dtml.json."""
    return SegmentationToDistance(ExactDistance(), factor=1, zero_inner_boundary=True), DistanceToSegmentation(k)


def smooth_field(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, 0, 1.2, 1.2, 1.2))
    return noise / noise.std()


def make_heads(seed: int = 0) -> dict[str, torch.Tensor]:
    """Logits and signed distance (4, 2, 8, 7, 6) of smooth objects on which they agree in part, recording gradients."""
    common = smooth_field(seed, SHAPE)
    first, second = (common + 0.5 * smooth_field(10 * (seed + 1) + i, SHAPE) for i in range(2))
    values = {"logits": 2 * first, "distance": np.tanh(-second / 2)}
    return {name: torch.tensor(value, dtype=torch.float32).requires_grad_() for name, value in values.items()}


def make_label() -> torch.Tensor:
    """Label values (2, 1, 8, 7, 6), 0, 1 and 2; crop 1 has no voxel of class 2."""
    value = smooth_field(5, (LABELED, 1, *SHAPE[2:]))
    label = (value > 0.2).astype(np.float32) + (value > 0.8)
    label[1] = np.minimum(label[1], 1)
    return torch.tensor(label)


def channels(label: torch.Tensor) -> np.ndarray:
    """Label values as two foreground channels, float64."""
    return np.concatenate([label.numpy() == c for c in (1, 2)], 1).astype(float)


def double(heads: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Probability and distance of ``heads`` in double precision."""
    logits, distance = (heads[name].detach().double().numpy() for name in ("logits", "distance"))
    return sigmoid(logits), distance


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def dice(p: np.ndarray, y: np.ndarray) -> float:
    """The benchmarks' Dice loss: squares, joint over the crops, mean over the classes."""
    both, first, second = ((x * z).sum((0, 2, 3, 4)) for x, z in ((p, y), (p, p), (y, y)))
    return float(np.mean(1 - (2 * both + 1e-5) / (first + second + 1e-5)))


def cross_entropy(p: np.ndarray, y: np.ndarray) -> float:
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())


def level_set(mask: np.ndarray) -> np.ndarray:
    """The target of one channel by scipy: normalised outside and inside, zero on the inner boundary."""
    if not mask.any():
        return np.ones(mask.shape)
    if mask.all():
        return -np.ones(mask.shape)
    outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
    signed = outside / outside.max() - inside / inside.max()
    signed[mask & ~binary_erosion(mask, border_value=1)] = 0
    return signed


def level_sets(y: np.ndarray) -> np.ndarray:
    return np.array([[level_set(channel > 0.5) for channel in crop] for crop in y])


def reached(gradient: torch.Tensor | None) -> list[bool]:
    """Which of the four crops have a gradient that is not zero."""
    return [False] * 4 if gradient is None else (gradient.abs().amax((1, 2, 3, 4)) > 0).tolist()


def run(workflow, dataset: Path, output: Path, *files: str, **overrides: object) -> None:
    """Two iterations of training through the bundle, or with configs/evaluate.json the evaluation of its weights."""
    bundle = workflow("configs/train.json", *files, **small(dataset, output, max_iterations=2, **overrides))
    bundle.initialize()
    bundle.run()
    bundle.finalize()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def train(workflow, dataset: Path, output: Path, *files: str, **overrides: object) -> list[dict[str, str]]:
    """Trains two iterations through the bundle and returns the rows of the log."""
    run(workflow, dataset, output, *files, **overrides)
    return rows(output / "training_log.csv")


def values_of(loss: Loss) -> dict[str, float]:
    """The terms of a loss as numbers."""
    return {name: value.item() for name, value in loss.terms.items()}


def merged(*files: str, **overrides: object) -> ConfigParser:
    """train.json with overlays and overrides, of one filter unless they say otherwise."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / file) for file in ("configs/train.json", *files)])
    parser.update({"base_filters": 1, **overrides})
    return parser
