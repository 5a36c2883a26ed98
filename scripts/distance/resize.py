"""Resize: trilinear interpolation to other extents; to larger ones on a CPU by one small matrix per axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def _apply(x: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Multiplies each spatial axis of (B, C, H, W, D) by its matrix (new extent, extent)."""
    along_h, along_w, along_d = matrices
    batch, classes, height, width, depth = x.shape
    x = (x.reshape(-1, depth) @ along_d.T).reshape(-1, width, len(along_d))
    x = along_w @ x
    x = along_h @ x.reshape(batch * classes, height, -1)
    return x.reshape(batch, classes, len(along_h), len(along_w), len(along_d))


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        # What interpolation does to the unit vectors is its matrix.
        ctx.matrices = [
            F.interpolate(torch.eye(old)[None], size=new, mode="linear", align_corners=False)[0].T.contiguous()
            for old, new in zip(x.shape[2:], size)
        ]
        return _apply(x, ctx.matrices)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        # Gradient norms are measured inside the trainer's autocast, where a product would come out in half.
        with torch.autocast(grad.device.type, enabled=False):
            return _apply(grad.contiguous(), [matrix.T for matrix in ctx.matrices]), None


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """``F.interpolate(mode="trilinear", align_corners=False)``.

    Its gradient on a CPU, from twice the extents, takes six times as long as the product with the matrices.

    Args:
        x: (B, C, H, W, D), float32.
        size: new extents.

    Returns:
        (B, C, *size), float32.
    """
    if x.device.type == "cpu" and all(new >= old for new, old in zip(size, x.shape[2:])):
        return _Resize.apply(x, tuple(size))
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)
