"""Teacher: a copy of the network whose weights are the exponential moving average of the student's."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from monai.networks import eval_mode
from torch import nn

from scripts.errors import UserError

if TYPE_CHECKING:
    from scripts.networks import Network


def copy_of(network: nn.Module, decay: float) -> nn.Module:
    """A copy of the network without gradient.

    Raises:
        UserError: when ``decay``, the share of itself that the copy is to keep, is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise UserError(f"ema_decay is {decay}; it is at least 0 and below 1 (at 1 the teacher never learns).")
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, steps: int, decay: float) -> float:
    """teacher = w teacher + (1 - w) student for the weights; returns w = min(1 - 1 / steps, decay).

    The first step copies; up to step 1 / (1 - decay) the teacher is the plain mean of the students so far.
    """
    kept = min(1 - 1 / steps, decay)
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - kept)
    return kept


class EMATeacher(nn.Module):
    """A copy of the network that follows it: weights and running statistics are exponential moving averages.

    It predicts in evaluation mode. ``state_dict`` holds the teacher and not the student.

    Args:
        network: the student.
        decay: the largest share w that is kept in :meth:`update`, in [0, 1).
        start: iteration before which the teacher is not used; it then starts as a copy of the student.

    Raises:
        UserError: when ``decay`` is out of range.
    """

    def __init__(self, network: Network, *, decay: float = 0.99, start: int = 0) -> None:
        super().__init__()
        self.network = copy_of(network, decay)
        # In a tuple, so that it is no submodule: its weights are the checkpoint's "model", not the objective's state.
        self._student = (network,)
        self.decay = decay
        self.start = start

    @torch.no_grad()
    def forward_heads(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The teacher's heads on ``image`` (B, channels, H, W, D), without gradient."""
        with eval_mode(self.network):
            return self.network.forward_heads(image)  # type: ignore[operator]

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """:func:`follow` after step ``iteration``, counted from 0, from the step before ``start`` on."""
        steps = iteration - max(self.start - 1, 0) + 1
        if steps < 1:
            return
        (student,) = self._student
        kept = follow(self.network, student, steps, self.decay)
        for averaged, buffer in zip(self.network.buffers(), student.buffers(), strict=True):
            if buffer.is_floating_point():
                averaged.lerp_(buffer, 1 - kept)
            else:
                averaged.copy_(buffer)
