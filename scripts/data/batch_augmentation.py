"""Batch augmentation: random intensity changes of a whole batch at once, on the batch's device.

MONAI's random transforms take one crop at a time on the host, which costs more than a network's pass on a GPU. Here
every crop has draws of its own and all are computed together. The draws are made on the CPU by torch's generator, so
that an iteration that seeds it repeats them on any device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from scripts.errors import UserError

# Smallest range of intensities that is stretched to [0, 1] for a gamma.
SMALLEST_RANGE = 1e-6


@dataclass(kw_only=True)
class RandomIntensity:
    """Random gamma, brightness, contrast, bias field, noise and blur, drawn separately for every crop.

    Images are expected normalised to mean 0 and standard deviation 1, the unit of ``brightness`` and ``noise``.

    Args:
        gamma: largest |log gamma|; the crop's range is raised to the power gamma.
        brightness: largest shift.
        contrast: largest relative change of the distance from the crop's mean, below 1.
        bias: largest |coefficient| of a smooth field exp(sum c_ijk x^i y^j z^k), i + j + k from 1 to 3, x, y, z in
            [-1, 1].
        noise: largest standard deviation of Gaussian noise.
        blur: largest standard deviation of a Gaussian blur, in voxels.
        prob: probability of each change, for every crop.

    Raises:
        UserError: when a strength is negative, ``contrast`` is 1 or more or ``prob`` is not in [0, 1].
    """

    gamma: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    bias: float = 0.2
    noise: float = 0.1
    blur: float = 1.0
    prob: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise UserError(f"prob is {self.prob}; a probability is from 0 to 1.")
        self.strengths = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "prob"}
        for name, strength in self.strengths.items():
            if strength < 0 or (name == "contrast" and strength >= 1):
                raise UserError(f"{name} is {strength}; it is 0 or more{', below 1' if name == 'contrast' else ''}.")

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """The changed crops, of the shape (B, channels, H, W, D) and dtype of ``image``; all channels alike.

        Computed in float32, under autocast, too.
        """
        if len(image) == 0:
            return image
        result = image.float()
        with torch.autocast(image.device.type, enabled=False):
            for name, strength in self.strengths.items():
                if strength == 0:
                    continue
                chosen = torch.rand(len(image)) < self.prob
                changed = getattr(self, f"_{name}")(result, strength)
                result = torch.where(_per_crop(chosen, result), changed, result)
        return result.to(image.dtype)

    def _gamma(self, image: torch.Tensor, strength: float) -> torch.Tensor:
        low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
        extent = (high - low).clamp(min=SMALLEST_RANGE)
        power = torch.exp(_uniform(len(image), strength))
        return ((image - low) / extent).clamp(0, 1) ** _per_crop(power, image) * extent + low

    def _brightness(self, image: torch.Tensor, strength: float) -> torch.Tensor:
        return image + _per_crop(_uniform(len(image), strength), image)

    def _contrast(self, image: torch.Tensor, strength: float) -> torch.Tensor:
        mean = image.mean((2, 3, 4), keepdim=True)
        return mean + (image - mean) * _per_crop(1 + _uniform(len(image), strength), image)

    def _bias(self, image: torch.Tensor, strength: float) -> torch.Tensor:
        axes = [torch.linspace(-1, 1, extent, device=image.device) for extent in image.shape[2:]]
        x, y, z = (torch.stack([axis**power for power in range(4)]) for axis in axes)
        powers = torch.arange(4)
        degree = powers[:, None, None] + powers[None, :, None] + powers
        used = (degree >= 1) & (degree <= 3)
        coefficients = (torch.rand(len(image), 4, 4, 4) * 2 - 1) * strength * used
        field = torch.einsum("bijk,ih,jw,kd->bhwd", coefficients.to(image.device), x, y, z)
        low = image.amin((2, 3, 4), keepdim=True)
        return (image - low) * torch.exp(field)[:, None] + low

    def _noise(self, image: torch.Tensor, strength: float) -> torch.Tensor:
        deviation = torch.rand(len(image)) * strength
        return image + torch.randn(image.shape).to(image.device) * _per_crop(deviation, image)

    def _blur(self, image: torch.Tensor, strength: float) -> torch.Tensor:
        radius = max(1, int(3 * strength + 0.5))
        sigma = torch.rand(len(image)) * strength + 1e-3
        offsets = torch.arange(-radius, radius + 1)
        kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(image.device)
        crops, channels = image.shape[:2]
        # One group per crop and channel, so that every crop has its own kernel.
        weights = kernel.repeat_interleave(channels, 0)[:, None]
        blurred = image.reshape(1, crops * channels, *image.shape[2:])
        for axis in range(3):
            shape, padding = [1, 1, 1], [0, 0, 0, 0, 0, 0]
            shape[axis] = 2 * radius + 1
            padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
            padded = F.pad(blurred, padding, mode="replicate")
            blurred = F.conv3d(padded, weights.reshape(-1, 1, *shape), groups=crops * channels)
        return blurred.reshape(image.shape)


def _uniform(number: int, strength: float) -> torch.Tensor:
    """``number`` draws from [-strength, strength]."""
    return (torch.rand(number) * 2 - 1) * strength


def _per_crop(values: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Reshapes (B,) to (B, 1, 1, 1, 1) on the image's device."""
    return values.to(image.device)[:, None, None, None, None]
