"""Teacher: a copy of the network whose weights are the exponential moving average of the student's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from monai.networks import eval_mode
from torch import nn

from .objective import Objective, Weight

if TYPE_CHECKING:
    from scripts.data import LabelCoding
    from scripts.networks import Network

NOISE_LIMIT = 2.0  # in standard deviations: the papers clip N(0, 0.1^2) at 0.2


class EMATeacher(nn.Module):
    """A copy of the network that follows it: weights and running statistics are exponential moving averages.

    It predicts in evaluation mode. ``state_dict`` holds the teacher and not the student.

    Args:
        network: the student.
        decay: the largest share w that is kept in :meth:`update`, in [0, 1).
        start: iteration before which the teacher is not used; it then starts as a copy of the student.

    Raises:
        ValueError: when ``decay`` is out of range.
    """

    def __init__(self, network: Network, *, decay: float = 0.99, start: int = 0) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay is {decay}; it is at least 0 and below 1 (at 1 the teacher never learns).")
        self.network = copy.deepcopy(network).requires_grad_(False)
        # In a tuple, so that it is no submodule: its weights are the checkpoint's "model", not the objective's state.
        self._student = (network,)
        self.decay = decay
        self.start = start

    @torch.no_grad()
    def forward_heads(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The teacher's heads on ``image`` (B, channels, H, W, D), without gradient."""
        with eval_mode(self.network):
            return self.network.forward_heads(image)

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """After step ``iteration``, counted from 0: teacher = w teacher + (1 - w) student, w = min(1 - 1/n, decay).

        n counts the steps from the one before ``start``, whose weights are copied.
        """
        steps = iteration - max(self.start - 1, 0) + 1
        if steps < 1:
            return
        kept = min(1 - 1 / steps, self.decay)
        (student,) = self._student
        torch._foreach_lerp_(list(self.network.parameters()), list(student.parameters()), 1 - kept)
        for averaged, buffer in zip(self.network.buffers(), student.buffers(), strict=True):
            if buffer.is_floating_point():
                averaged.lerp_(buffer, 1 - kept)
            else:
                averaged.copy_(buffer)


class TeacherObjective(Objective):
    """Base of the methods with a mean teacher.

    After step t, counted from 0, w = min(1 - 1 / (t + 1), ema_decay) and

        teacher = w * teacher + (1 - w) * student

    for the weights alone: the first step copies them, and up to t + 1 = 1 / (1 - ema_decay) the teacher is the plain
    mean of the students so far. The teacher stays in training mode, as in the authors' programs: dropout is on, and
    BatchNorm normalises by the statistics of the teacher's own batch. Its running statistics are its own, written by
    its own passes and read by nothing. (ignite's EMAHandler aliases the student's buffers by default and torch's
    AveragedModel overwrites them after each step: both mean a teacher that predicts in evaluation mode.)

    ``state_dict`` holds the teacher and not the student.

    Args:
        label_coding: see :class:`~scripts.methods.Objective`.
        network: the student.
        weights: see :class:`~scripts.methods.Objective`.
        ema_decay: the largest w, in [0, 1).
        noise: standard deviation of the Gaussian noise on the teacher's input, in the unit of the normalised image;
            clipped at twice that.

    Raises:
        ValueError: when ``ema_decay`` or ``noise`` is out of range.
    """

    def __init__(
        self,
        label_coding: LabelCoding,
        network: Network,
        weights: Mapping[str, Weight] | None = None,
        *,
        ema_decay: float = 0.99,
        noise: float = 0.1,
    ) -> None:
        super().__init__(label_coding, weights)
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay is {ema_decay}; it is at least 0 and below 1 (at 1 the teacher never learns).")
        if noise < 0:
            raise ValueError(f"noise is {noise}; a standard deviation is 0 or more.")
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        # In a tuple, so that it is no submodule: its weights are the checkpoint's "model", not the objective's state.
        self._student = (network,)
        self.ema_decay = ema_decay
        self.noise = noise

    @torch.no_grad()
    def teach(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The teacher's heads on ``image`` (B, channels, H, W, D) with fresh noise on it and fresh dropout."""
        self.teacher.train()
        noise = (torch.randn_like(image) * self.noise).clamp(-NOISE_LIMIT * self.noise, NOISE_LIMIT * self.noise)
        return self.teacher.forward_heads(image + noise)

    @torch.no_grad()
    def after_step(self, iteration: int) -> None:
        kept = min(1 - 1 / (iteration + 1), self.ema_decay)
        (student,) = self._student
        for averaged, weight in zip(self.teacher.parameters(), student.parameters(), strict=True):
            averaged.lerp_(weight, 1 - kept)
