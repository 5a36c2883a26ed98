"""Schedules: division of a run's iterations into epochs, and decay of the learning rate."""

from collections.abc import Callable

from scripts.errors import UserError


def iterations_per_epoch(max_iterations: int, *, at_most: int = 100) -> int:
    """The largest divisor of ``max_iterations`` up to ``at_most``, so that the last epoch ends at ``max_iterations``.

    A number without a divisor of at least a tenth of ``at_most`` is run as one epoch.

    Raises:
        UserError: when ``max_iterations`` is not a positive integer.
    """
    if not isinstance(max_iterations, int) or max_iterations < 1:
        raise UserError(f"max_iterations is {max_iterations!r}; it must be a positive integer.")
    for length in range(min(at_most, max_iterations), max(1, at_most // 10) - 1, -1):
        if max_iterations % length == 0:
            return length
    return max_iterations


def polynomial_decay(max_iterations: int, *, power: float = 0.9) -> Callable[[int], float]:
    """(1 - t / T)^power for ``torch.optim.lr_scheduler.LambdaLR``, constant from the last iteration on.

    It never reaches zero, so that a client that runs more epochs than planned still trains, slowly.
    """

    def factor(iteration: int) -> float:
        return (1 - min(iteration, max_iterations - 1) / max_iterations) ** power

    return factor
