"""Strategies: the order in which to label cases, from how doubtful each is and how different from the others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from scripts.data import DataError

STRATEGIES = ("random", "disagreement", "diversity", "combined")


class Step(NamedTuple):
    """One case in its turn.

    Args:
        case: its position.
        score: what it was chosen by, higher first; its scale depends on the strategy.
        doubt: 1 minus the mean agreement, [0, 1]; None for strategies without.
        distance: to the nearest labeled or earlier case, 1 is the mean distance of two cases; None for strategies
            without, and where there was no such case.
        nearest: position of that case; labeled ones come behind the unlabeled ones.
    """

    case: int
    score: float
    doubt: float | None = None
    distance: float | None = None
    nearest: int | None = None


def order(
    strategy: str,
    *,
    doubt: Sequence[float],
    features: np.ndarray | None = None,
    labeled: np.ndarray | None = None,
    seed: int = 0,
) -> list[Step]:
    """All unlabeled cases in the order in which to label them.

    - random: by chance.
    - disagreement: the most doubtful first.
    - diversity: k-center greedy (Sener and Savarese 2018): always the case farthest from all labeled or
      chosen ones.
    - combined: the same with every distance multiplied by the case's rank in doubt, from 1/N to 1.

    Args:
        strategy: one of ``STRATEGIES``.
        doubt: (N,), [0, 1], of the unlabeled cases.
        features: (N, F), of the unlabeled cases, for diversity and combined.
        labeled: (L, F), of the labeled cases; L may be 0, then the case nearest to the mean is the first.
        seed: of random.

    Raises:
        DataError: when there is no such strategy, or features are missing.
    """
    count = len(doubt)
    if strategy not in STRATEGIES:
        raise DataError(f"strategy is {strategy!r}; it is one of {', '.join(STRATEGIES)}.")
    if strategy == "random":
        chance = np.random.default_rng(seed).permutation(count)
        return [Step(int(case), 1 - turn / count) for turn, case in enumerate(chance)]
    if strategy == "disagreement":
        return [Step(int(case), doubt[case], doubt[case]) for case in np.argsort(-np.asarray(doubt), kind="stable")]
    if features is None or labeled is None:
        raise DataError(
            f"strategy {strategy} compares features of the encoder, and no network of the runs gives them away: take "
            "disagreement or random, or a run with a VNet or one of the dual-task networks."
        )
    weight = rankdata(doubt, "max") / count if strategy == "combined" else np.ones(count)
    return _farthest_first(features, labeled, weight, doubt if strategy == "combined" else None)


def _farthest_first(
    features: np.ndarray, labeled: np.ndarray, weight: np.ndarray, doubt: Sequence[float] | None
) -> list[Step]:
    points = np.concatenate([features, labeled.reshape(-1, features.shape[1])]).astype(np.float64)
    points = (points - points.mean(0)) / np.maximum(points.std(0), 1e-12)
    between = cdist(points, points)
    between /= max(between.sum() / max(1, len(points) * (len(points) - 1)), 1e-12)
    count = len(features)
    known = np.arange(count, len(points))
    left = list(range(count))
    steps: list[Step] = []
    while left:
        if len(known):
            far = between[left][:, known]
            values = far.min(1) * weight[left]
            place = int(values.argmax())
            apart, nearest = float(far[place].min()), int(known[far[place].argmin()])
        else:
            values = weight[left] / (1 + np.linalg.norm(points[left] - points[left].mean(0), axis=1))
            place, apart, nearest = int(values.argmax()), None, None
        case = left.pop(place)
        steps.append(Step(case, float(values[place]), None if doubt is None else doubt[case], apart, nearest))
        known = np.append(known, case)
    return steps
