"""Paired: means with their deviations over cases and runs, and the paired test of a method against the baseline."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

SUMMARY_COLUMNS = ("mean", "std_cases", "std_runs", "std_draws", "std_seeds", "cases", "runs", "draws")
TEST_COLUMNS = ("difference", "standard_error", "p_value", "pairs", "better")
# Values of one class and metric: case -> value, one mapping per run of a method, which (draw, seed) names.
Values = Mapping[tuple[int, int], Mapping[str, float]]


def over_runs(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values of every case; (runs, cases) -> (cases), NaN for a case that has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=0)


def table(values: Values, runs: Sequence[tuple[int, int]], cases: Sequence[str]) -> np.ndarray:
    """The values as an array (runs, cases), float64, NaN where a case has none."""
    return np.array([[values[run].get(case, np.nan) for case in cases] for run in runs], dtype=np.float64)


def deviation(values: np.ndarray) -> float | None:
    """Sample standard deviation (ddof 1); None for fewer than two values."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def components(means: Mapping[tuple[int, int], float]) -> tuple[float | None, float | None]:
    """How far draws of the labeled cases, and how far seeds, move the mean of a run.

    Variance components of a random model with seeds within draws (analysis of variance, method of moments; a draw's
    component is at least 0).

    Args:
        means: (draw, seed) -> mean.

    Returns:
        The standard deviations (between draws, between the seeds of a draw). With one draw the first is None; with one
        seed in every draw both are: what another seed would have changed is then in the difference of the draws.
    """
    groups = [np.array([m for (d, _), m in means.items() if d == draw]) for draw in sorted({d for d, _ in means})]
    sizes = np.array([len(group) for group in groups])
    within = sizes.sum() - len(groups)
    if within < 1:
        return None, None
    of_seeds = sum(((group - group.mean()) ** 2).sum() for group in groups) / within
    if len(groups) < 2:
        return None, float(of_seeds**0.5)
    grand = sum(group.sum() for group in groups) / sizes.sum()
    between = sum(len(group) * (group.mean() - grand) ** 2 for group in groups) / (len(groups) - 1)
    # Seeds per draw; where the draws do not have the same number, what takes its place in the expected mean squares.
    per_draw = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(groups) - 1)
    return float(max(0.0, (between - of_seeds) / per_draw) ** 0.5), float(of_seeds**0.5)


def summary(values: Values) -> dict[str, Any]:
    """Mean and deviations of one method; NaN values are left out.

    Returns:
        ``mean`` over the cases, each of them averaged over the runs; ``std_cases``, sample standard deviation of these
        averages; ``std_runs``, that of the runs' means over their cases; ``std_draws`` and ``std_seeds``, their
        :func:`components`; ``cases``, ``runs`` and ``draws``, how many had a value. What cannot be computed is None.
    """
    cases, runs = sorted({case for of_run in values.values() for case in of_run}), sorted(values)
    array = table(values, runs, cases)
    by_case = over_runs(array)
    by_case = by_case[np.isfinite(by_case)]
    by_run = {run: float(mean) for run, mean in zip(runs, over_runs(array.T)) if np.isfinite(mean)}
    of_draws, of_seeds = components(by_run)
    return {
        "mean": float(by_case.mean()) if len(by_case) else None,
        "std_cases": deviation(by_case),
        "std_runs": deviation(np.array(list(by_run.values()))),
        "std_draws": of_draws,
        "std_seeds": of_seeds,
        "cases": len(by_case),
        "runs": len(by_run),
        "draws": len({draw for draw, _ in by_run}),
    }


def case_differences(method: Values, baseline: Values) -> dict[str, float]:
    """Method minus baseline for every case that both have, averaged over the runs (draw and seed) that both have.

    A case of which one of the two has no finite value in any common run is left out.
    """
    both = sorted(set(method) & set(baseline))
    if not both:
        return {}
    cases = sorted({case for run in both for case in method[run]} & {c for run in both for c in baseline[run]})
    differences = over_runs(table(method, both, cases) - table(baseline, both, cases))
    return {case: float(value) for case, value in zip(cases, differences) if np.isfinite(value)}


def paired_test(method: Values, baseline: Values, *, higher_is_better: bool) -> dict[str, Any]:
    """Tests whether the differences between a method and the baseline, case by case, are symmetric around zero.

    The p-value is that of the two-sided Wilcoxon signed-rank test (scipy; exact for up to 50 cases without ties), and 1
    where all differences are zero. It speaks of these cases: it is not corrected for the number of methods, and the
    deviation between runs has to be read beside it.

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
