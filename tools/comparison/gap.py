"""Gap: the share of the way from the supervised baseline to all labels that a method goes, with its interval."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t

from .paired import Values, table

GAP_COLUMNS = ("room", "room_error", "gap_closed", "gap_low", "gap_high")
CONFIDENCE = 0.95
# Covariance of the means of (gain, room), and its degrees of freedom.
Part = tuple[np.ndarray, int]


def gap_closed(method: Values, baseline: Values, ceiling: Values) -> dict[str, float | None]:
    """(method - baseline) / (ceiling - baseline), over the cases that all have and the runs that both methods have.

    The interval is Fieller's for a ratio of means: all shares s for which gain - s room cannot be told from 0 at 5 %
    (two-sided t). Its variance is the sum of three: over the cases, each averaged over the runs; over the draws, each
    averaged over cases and seeds (over the seeds, where there is one draw); over the seeds of the ceiling. The degrees
    of freedom are Satterthwaite's. What differs by case *and* run is in two of the three: the interval is rather too
    wide than too narrow.

    Args:
        method, baseline: of the method and of the supervised baseline.
        ceiling: of all labels, of any draw.

    Returns:
        ``room``, ceiling minus baseline; ``room_error``, half the width of its 95 % interval; ``gap_closed`` with
        ``gap_low`` and ``gap_high``. None: the share and its interval, where the room is not larger than its error; the
        interval, where it has no bounds, as happens with a room barely larger; all, where nothing is common or a single
        case leaves the error unknown.
    """
    found: dict[str, float | None] = dict.fromkeys(GAP_COLUMNS)
    both = sorted(set(method) & set(baseline))
    measured = [
        {case for case, value in run.items() if np.isfinite(value)}
        for run in [*(method[run] for run in both), *(baseline[run] for run in both), *ceiling.values()]
    ]
    cases = sorted(set.intersection(*measured)) if both and ceiling else []
    if len(cases) < 2:
        return found
    values, start = table(method, both, cases), table(baseline, both, cases)
    top = table(ceiling, sorted(ceiling), cases)
    units = np.array([run[0] if len({draw for draw, _ in both}) > 1 else run[1] for run in both])
    pair = np.stack([values - start, top.mean(0) - start])
    pair = np.stack([pair[:, units == unit].mean(1) for unit in np.unique(units)], axis=1)  # 2, draws or seeds, cases
    of_ceiling = np.diag([0.0, top.mean(1).var(ddof=1) if len(top) > 1 else 0.0])
    parts = [
        (np.cov(pair.mean(1)) / len(cases), len(cases) - 1),
        (np.cov(pair.mean(2)) / pair.shape[1] if pair.shape[1] > 1 else np.zeros((2, 2)), pair.shape[1] - 1),
        (of_ceiling / len(top), len(top) - 1),
    ]
    gain, room = pair.mean((1, 2))
    covariance = np.sum([part for part, _ in parts], axis=0)
    error = _quantile(parts, [0.0, 1.0]) * covariance[1, 1] ** 0.5
    found |= {"room": float(room), "room_error": float(error)}
    if room <= error:
        return found
    share = float(gain / room)
    found["gap_closed"] = share
    # (gain - s room)^2 <= quantile^2 (variance of gain - s room), solved for s.
    quantile = _quantile(parts, [1.0, -share])
    a, b, c = (
        room**2 - quantile**2 * covariance[1, 1],
        gain * room - quantile**2 * covariance[0, 1],
        gain**2 - quantile**2 * covariance[0, 0],
    )
    if a > 0:
        half = max(0.0, b**2 - a * c) ** 0.5
        # The share is within; rounding must not put it out of an interval that is a point.
        found |= {"gap_low": min(share, float((b - half) / a)), "gap_high": max(share, float((b + half) / a))}
    return found


def _quantile(parts: Sequence[Part], of: Sequence[float]) -> float:
    """Of t, for a 95 % interval of a weighted sum of gain and room; degrees of freedom by Satterthwaite."""
    weights = np.array(of)
    variances = [(weights @ part @ weights, degrees) for part, degrees in parts]
    below = sum(variance**2 / degrees for variance, degrees in variances if degrees > 0)
    # Without any variance the interval is a point, whatever the quantile.
    degrees = sum(variance for variance, _ in variances) ** 2 / below if below > 0 else 1.0
    return float(t.ppf((1 + CONFIDENCE) / 2, degrees))
