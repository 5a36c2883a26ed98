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


class EMATeacher(nn.Module):
    """A copy of the network that follows it: weights and running statistics are exponential moving averages.

    After update n of it, teacher = w teacher + (1 - w) student with w = min(1 - 1 / n, ``decay``): the first update
    copies; up to update 1 / (1 - decay) the teacher is the plain mean of the students so far. It predicts in evaluation
    mode. ``state_dict`` holds the teacher and not the student.

    Args:
        network: the student.
        decay: the largest w, in [0, 1).
        start: iteration before which the teacher is not used; it then starts as a copy of the student.
        buffers: False leaves the running statistics to the teacher's own passes.

    Raises:
        UserError: when ``decay`` is out of range.
    """

    def __init__(self, network: Network, *, decay: float = 0.99, start: int = 0, buffers: bool = True) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise UserError(f"ema_decay is {decay}; it is at least 0 and below 1 (at 1 the teacher never learns).")
        self.network = copy.deepcopy(network).requires_grad_(False)
        # In a tuple, so that it is no submodule: its weights are the checkpoint's "model", not the objective's state.
        self._student = (network,)
        self.decay = decay
        self.start = start
        self.follows_buffers = buffers
        # Not the iteration: with accumulated gradients, and after a skipped batch, the student moves less often.
        self.updates = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.updates = state["updates"]

    @torch.no_grad()
    def forward_heads(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The teacher's heads on ``image`` (B, channels, H, W, D), without gradient."""
        if self.start and not self.updates:  # the step before ``start`` was skipped
            self._follow(1)
        with eval_mode(self.network):
            return self.network.forward_heads(image)

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Follows the student after its step in ``iteration``, counted from 0, from ``start`` - 1 on."""
        if iteration >= self.start - 1:
            self.updates += 1
            self._follow(self.updates)

    def _follow(self, updates: int) -> None:
        (student,) = self._student
        kept = min(1 - 1 / updates, self.decay)
        torch._foreach_lerp_(list(self.network.parameters()), list(student.parameters()), 1 - kept)
        if not self.follows_buffers:
            return
        for averaged, buffer in zip(self.network.buffers(), student.buffers(), strict=True):
            if buffer.is_floating_point():
                averaged.lerp_(buffer, 1 - kept)
            else:
                averaged.copy_(buffer)
