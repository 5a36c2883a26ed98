"""Ramps: weights that change over the iterations of a run."""

import math

from scripts.errors import UserError


class GaussianRampUp:
    """peak * exp(-5 (1 - min(t, length) / length)^2): slow at first, full at ``length`` and ever after.

    The benchmarks' programs step it every 150 iterations over 6000; here it is continuous, and the shipped configs give
    the length as a fraction of ``max_iterations``, so that a short run is the same experiment in small.

    Args:
        length: iterations until the weight is full; at 0 it is full from the start.
        peak: the full weight.

    Raises:
        UserError: when ``length`` is negative.
    """

    def __init__(self, length: float, peak: float = 1.0) -> None:
        if length < 0:
            raise UserError(f"length is {length}; a ramp lasts 0 or more iterations.")
        self.length = length
        self.peak = peak

    def __call__(self, iteration: int) -> float:
        """The weight at ``iteration``, counted from 0."""
        if iteration >= self.length:
            return self.peak
        return self.peak * math.exp(-5.0 * (1.0 - iteration / self.length) ** 2)
