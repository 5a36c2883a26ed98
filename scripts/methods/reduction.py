r"""Reduction: losses of a batch that is spread over several processes, equal to those of the whole batch in one.

A loss that is a mean over voxels is the mean of the processes' means, since their shares are equal. A ratio of sums
(joint Dice, a mean over a mask) is not: numerator and denominator have to be summed over the processes first.

How the gradients come out right. Process r of w holds the share N_r of N = sum_r N_r, and the loss f(N) is the same
number in all of them. What the trainer applies is the mean over the processes of each one's own gradient (as in torch's
DistributedDataParallel), (1/w) sum_r g_r, and what one process would apply is f'(N) sum_r dN_r. So g_r has to be
w f'(N) dN_r: :func:`sum_over_ranks` multiplies by w on the way back. f'(N) is the same everywhere, hence nothing is
communicated there. A mean M = (1/w) sum_r M_r needs no factor: (1/w) sum_r f'(M) dM_r is already what one process
would apply, and :func:`mean_over_ranks` has the identity on the way back. A number that is the same in all processes,
such as a ratio of sums, goes through :func:`mean_over_ranks` unchanged, and so does its gradient: sums of terms of
both kinds may be averaged together, which :class:`~scripts.methods.Objective` does with all of its terms.

Without a process group both functions return their arguments.
"""

from typing import Any

import torch
import torch.distributed as dist

from scripts.ranks import world_size


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return world_size() * gradient


class _Replace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return by.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def sum_over_ranks(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The sum of each of ``values``, all of one shape, over the processes, in one message.

    As with every operation over processes, all of them have to call it, and in the same order.
    """
    return values if world_size() == 1 else _Sum.apply(torch.stack(values)).unbind()


def mean_over_ranks(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The mean of each of ``values``, all of one shape, over the processes, in one message.

    The graph of each stays its own, so that the gradient of one does not run through the others.
    """
    if world_size() == 1 or not values:
        return values
    means = torch.stack([value.detach() for value in values])
    dist.all_reduce(means)
    return tuple(_Replace.apply(value, mean) for value, mean in zip(values, means / world_size(), strict=True))
