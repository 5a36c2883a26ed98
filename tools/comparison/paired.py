"""Paired: means with their deviations over cases and seeds, and the paired test of a method against the baseline."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

SUMMARY_COLUMNS = ("mean", "std_cases", "std_seeds", "cases", "seeds")
TEST_COLUMNS = ("difference", "standard_error", "p_value", "pairs", "better")
# Values of one class and metric: case -> value, one mapping per seed.
Seeds = Mapping[int, Mapping[str, float]]


def over_seeds(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values of every case; (seeds, cases) -> (cases), NaN for a case that has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=0)


def table(seeds: Seeds, which: Sequence[int], cases: Sequence[str]) -> np.ndarray:
    """The values as an array (seeds, cases), float64, NaN where a case has none."""
    return np.array([[seeds[seed].get(case, np.nan) for case in cases] for seed in which], dtype=np.float64)


def deviation(values: np.ndarray) -> float | None:
    """Sample standard deviation (ddof 1); None for fewer than two values."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def summary(seeds: Seeds) -> dict[str, Any]:
    """Mean and deviations of one method.

    Args:
        seeds: seed -> case -> value. NaN values are left out.

    Returns:
        ``mean`` over the cases, each of them averaged over the seeds; ``std_cases``, sample standard deviation of these
        averages; ``std_seeds``, that of the seeds' means over their cases; ``cases`` and ``seeds``, how many had a
        value. What cannot be computed is None.
    """
    cases = sorted({case for values in seeds.values() for case in values})
    values = table(seeds, sorted(seeds), cases)
    by_case = over_seeds(values)
    by_case = by_case[np.isfinite(by_case)]
    by_seed = over_seeds(values.T)
    by_seed = by_seed[np.isfinite(by_seed)]
    return {
        "mean": float(by_case.mean()) if len(by_case) else None,
        "std_cases": deviation(by_case),
        "std_seeds": deviation(by_seed),
        "cases": len(by_case),
        "seeds": len(by_seed),
    }


def case_differences(method: Seeds, baseline: Seeds) -> dict[str, float]:
    """Method minus baseline for every case that both have, averaged over the seeds that both have.

    A case of which one of the two has no finite value in any common seed is left out.
    """
    both = sorted(set(method) & set(baseline))
    if not both:
        return {}
    cases = sorted({case for seed in both for case in method[seed]} & {c for s in both for c in baseline[s]})
    differences = over_seeds(table(method, both, cases) - table(baseline, both, cases))
    return {case: float(value) for case, value in zip(cases, differences) if np.isfinite(value)}


def paired_test(method: Seeds, baseline: Seeds, *, higher_is_better: bool) -> dict[str, Any]:
    """Tests whether the differences between a method and the baseline, case by case, are symmetric around zero.

    The p-value is that of the two-sided Wilcoxon signed-rank test (scipy; exact for up to 50 cases without ties), and 1
    where all differences are zero. It speaks of these cases: it is not corrected for the number of methods, and the
    deviation between seeds has to be read beside it.

    Args:
        method: seed -> case -> value.
        baseline: the same for the baseline.
        higher_is_better: for ``better``.

    Returns:
        ``difference``, the mean; ``standard_error``, its sample standard deviation over the square root of the number
        of cases; ``p_value``; ``pairs``, the number of cases; ``better``, in how many the method is. What cannot be
        computed is None.
    """
    values = np.array(list(case_differences(method, baseline).values()))
    if not len(values):
        return {"difference": None, "standard_error": None, "p_value": None, "pairs": 0, "better": 0}
    spread = deviation(values)
    return {
        "difference": float(values.mean()),
        "standard_error": None if spread is None else spread / len(values) ** 0.5,
        "p_value": float(wilcoxon(values).pvalue) if values.any() else 1.0,
        "pairs": len(values),
        "better": int((values > 0).sum() if higher_is_better else (values < 0).sum()),
    }
