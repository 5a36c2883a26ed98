"""Layers: group normalisation and pointwise convolution whose CPU cost in channels_last_3d is that of their memory.

Values, names of the weights and random numbers are those of torch's layers, from which they derive. They compute
differently where torch is slow: float32 and bfloat16 on a CPU in channels_last_3d (docs/performance.md has the times).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


class _ChannelsLastGroupNorm(torch.autograd.Function):
    """Group normalisation with torch's forward pass, and a backward pass that reads the memory in its own order.

    With m and r the mean and reciprocal deviation of a group of n values, w the weight and b the bias, the gradient of
    y = (x - m) r w + b is dx = r w dy + p (x - m) - q, p = -r^3 / n sum(w dy (x - m)) and q = r / n sum(w dy), the sums
    over the group.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float) -> Any:
        batch, channels = x.shape[:2]
        y, mean, rstd = torch.native_group_norm(x, weight, bias, batch, channels, x[0, 0].numel(), groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, mean, rstd = ctx.saved_tensors
        dtype = x.dtype
        x, grad, mean, rstd = x.float(), grad.float(), mean.float(), rstd.float()
        batch, channels, height, width, depth = x.shape
        groups = mean.shape[1]

        # One row is all channels of a line along D: long enough to be computed on with vector instructions.
        row = depth * channels
        rows = (batch, height, width, row)
        x = x.permute(0, 2, 3, 4, 1).reshape(rows)
        grad = grad.permute(0, 2, 3, 4, 1).reshape(rows)

        def per_channel(values: torch.Tensor) -> torch.Tensor:
            # Axis by axis, since a single long sum loses digits.
            return values.sum(2).sum(1).view(batch, depth, channels).sum(1)

        def as_row(values: torch.Tensor) -> torch.Tensor:
            return values[:, None].expand(-1, depth, -1).reshape(batch, 1, 1, row)

        def of_group(values: torch.Tensor) -> torch.Tensor:
            return values.repeat_interleave(channels // groups, dim=1)

        sum_grad, sum_grad_x = per_channel(grad), per_channel(grad * x)
        centred = sum_grad_x - sum_grad * of_group(mean)
        size = x[0].numel() // groups
        p = -(rstd**3) / size * (centred * weight).view(batch, groups, -1).sum(2)
        q = rstd / size * (sum_grad * weight).view(batch, groups, -1).sum(2)
        grad_x = torch.addcmul(as_row(of_group(-p * mean - q)), grad, as_row(of_group(rstd) * weight))
        grad_x.addcmul_(x, as_row(of_group(p)))
        grad_x = grad_x.to(dtype).view(batch, height, width, depth, channels).permute(0, 4, 1, 2, 3)
        return grad_x, (centred * of_group(rstd)).sum(0), sum_grad.sum(0), None, None


def _slow_in_torch(x: torch.Tensor) -> bool:
    """Whether ``x`` is what the layers here compute in their own way."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.dim() == 5
        and x.is_contiguous(memory_format=torch.channels_last_3d)
    )


class GroupNorm(nn.GroupNorm):
    """``torch.nn.GroupNorm`` with weight and bias, whose backward pass takes a fifth of torch's time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D), normalised within groups of channels of a crop, then scaled and shifted."""
        # TorchScript knows no autograd functions.
        if not torch.jit.is_scripting():
            if torch.is_grad_enabled() and x.requires_grad and _slow_in_torch(x):
                return _ChannelsLastGroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class PointwiseConv3d(nn.Conv3d):
    """A 1x1x1 convolution, computed as the matrix product that it is.

    Args:
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W, D) to (B, out_channels, H, W, D)."""
        if _slow_in_torch(x):
            return F.linear(x.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)
        return self._conv_forward(x, self.weight, self.bias)
