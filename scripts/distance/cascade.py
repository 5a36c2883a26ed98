"""Cascaded distance transform: distances by repeated convolution with an exponential kernel (DBiSL Eq. 2)."""

import torch
import torch.nn.functional as F
from torch import nn

from scripts.errors import UserError

# Step of the voxels that no step reaches: the seeds, and everything if there is no seed.
NEVER = -1


def exponential_kernel(kernel_size: int, h: float) -> torch.Tensor:
    """K(u) = exp(-||u|| / h) on a cube of ``kernel_size`` voxels, (1, 1, s, s, s), float32 (DBiSL Eq. 2)."""
    radius = kernel_size // 2
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.exp(-torch.sqrt(x * x + y * y + z * z) / h)[None, None]


def step_by_step(seeds: torch.Tensor, kernel: torch.Tensor, h: float) -> tuple[torch.Tensor, ...]:
    """The cascade's forward pass, see :class:`_Cascade`: distance, c and step of every voxel."""
    radius = kernel.shape[-1] // 2
    reached = seeds.clone()
    distance = torch.zeros_like(seeds)
    sums = torch.ones_like(seeds)
    step_of = torch.full(seeds.shape, NEVER, dtype=torch.int16, device=seeds.device)
    for step in range(-(-max(seeds.shape[2:]) // radius)):
        c = F.conv3d(F.pad(reached, (radius,) * 6, mode="replicate"), kernel)
        # Seeds and voxels reached before have c >= 1 and give d <= 0.
        new = (c > 0) & (c < 1)
        if not new.any():
            break
        distance = torch.where(new, step * radius - h * torch.log(c), distance)
        sums = torch.where(new, c, sums)
        step_of.masked_fill_(new, step)
        reached.masked_fill_(new, 1.0)
    return distance, sums, step_of


class _Cascade(torch.autograd.Function):
    """The cascade on binary seeds, with a backward of three convolutions whatever the number of steps.

    Forward: step i convolves B_i with K, gives every voxel v with c(v) = (K * B_i)(v) > 0 and -h log c(v) > 0 its
    distance i * rho - h log c(v), and sets B_{i+1}(v) = 1 there.

    Backward: d D(v) / d B_i(u) = -h K(u - v) / c(v), and B_i(u) is the seed x(u) itself as long as u has not been
    reached before step i, a constant 1 afterwards. So a voxel v of step s(v) sends its gradient to the neighbours u
    with s(u) >= s(v) and to the seeds. Neighbours within the radius differ by at most one step, so the steps modulo
    three can be convolved together without mixing.
    """

    @staticmethod
    def forward(ctx, seeds: torch.Tensor, kernel: torch.Tensor, h: float) -> torch.Tensor:
        distance, sums, step_of = step_by_step(seeds, kernel, h)
        if seeds.requires_grad:
            ctx.save_for_backward(sums, step_of, kernel)
        ctx.h = h
        return distance

    @staticmethod
    def backward(ctx, grad_distance: torch.Tensor):
        # Gradient norms are measured inside the trainer's autocast, where a convolution would come out in half.
        with torch.autocast(grad_distance.device.type, enabled=False):
            sums, step_of, kernel = ctx.saved_tensors
            radius = kernel.shape[-1] // 2
            sends = step_of != NEVER
            flow = (grad_distance * sends).div_(sums).mul_(-ctx.h)
            # Modulo three: what no step reaches counts as 3, so that its gradient comes from all three.
            residue_of = torch.where(sends, step_of.remainder(3), 3).to(torch.uint8)
            grad_seeds = torch.zeros_like(sums)
            for residue in range(3):
                # The kernel is symmetric, so the adjoint of its convolution is a convolution; then that of the padding.
                padded = F.conv3d(F.pad(flow * (residue_of == residue), (2 * radius,) * 6), kernel)
                received = torch.ops.aten.replication_pad3d_backward(padded, sums, (radius,) * 6)
                # Of the senders' step and the next one, or never reached (a seed); else the sender is a step ahead.
                grad_seeds += received.mul_(residue_of != (residue + 2) % 3)
            return grad_seeds, None, None


class CascadedDistance(nn.Module):
    """Distance to the nearest seed, approximately, in voxels; the paper's transform.

    A front grows from the seeds by the kernel's radius rho in every step. A voxel that step i reaches gets the
    distance i * rho - h * log(K * B_i), where B_i is one on the seeds and on all that was reached before.
    Reference: DBiSL section 3.2.2, after Riba et al. 2020, whose 2D transform it extends.

    It must be fed binary seeds: on soft input every voxel above zero is a seed of the first step. The error against
    the Euclidean transform grows with the distance (see docs/methods/dbisl.md); the zero set is exact at the default
    ``h`` and not above about 0.4, where a hole of one voxel closes.

    Args:
        kernel_size: s, odd, at least 3; the radius is (s - 1) / 2 voxels.
        h: decay of the kernel in voxels, positive.

    Raises:
        UserError: when ``kernel_size`` is even or below 3, or ``h`` is not positive.
    """

    def __init__(self, kernel_size: int = 3, h: float = 0.35) -> None:
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise UserError(f"kernel_size is {kernel_size}; it must be odd and at least 3.")
        if h <= 0:
            raise UserError(f"h is {h}; the decay of the kernel must be positive (default 0.35).")
        self.radius = kernel_size // 2
        self.h = h
        self.register_buffer("kernel", exponential_kernel(kernel_size, h), persistent=False)

    def forward(self, seeds: torch.Tensor) -> torch.Tensor:
        """Distances (N, 1, H, W, D), float32, in voxels; zero on the seeds, and everywhere if there is no seed.

        Args:
            seeds: (N, 1, H, W, D), exactly 0 or 1. Gradient flows into it through every step's convolution.
        """
        with torch.autocast(seeds.device.type, enabled=False):
            return _Cascade.apply(seeds.float(), self.kernel, self.h)
