"""Segmentation to signed distance: binarise, measure inside and outside, normalise, subtract (T_s2r, DBiSL Eq. 2-5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .resize import resize

# Voxels that a CPU works on at a time.
CPU_VOXELS = 2**18


def straight_through(probability: torch.Tensor, *, gate: float | None = None) -> torch.Tensor:
    """Exactly binary forward, [p > 1/2]; backward the identity.

    Args:
        probability: any shape, [0, 1].
        gate: gradient passes only where |p - 1/2| is below it; None lets it pass everywhere. In (0, 1/2].

    Returns:
        float tensor of zeros and ones, same shape.
    """
    hard = (probability > 0.5).to(probability.dtype)
    # (p - p) is exactly zero; hard + p - p is not, and leaves false seeds of 6e-8.
    through = probability - probability.detach()
    if gate is not None:
        through = through * ((probability - 0.5).abs() < gate)
    return hard + through


def inner_boundary(foreground: torch.Tensor) -> torch.Tensor:
    """The foreground voxels with a face in common with the background; the patch's own edge is no background.

    Args:
        foreground: (B, C, H, W, D), bool.

    Returns:
        (B, C, H, W, D), bool.
    """
    background = (~foreground).float()
    touched = torch.zeros_like(foreground)
    for kernel in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):
        padding = tuple(extent // 2 for extent in kernel)
        touched |= F.max_pool3d(background, kernel, stride=1, padding=padding) > 0
    return foreground & touched


class PartialMap(NamedTuple):
    """The signed distance map of a label that is unknown in places, see :meth:`SegmentationToDistance.of_partial`.

    Args:
        map: (B, C, H, W, D), float32, [-1, 1] where it is known.
        known: (B, C, H, W, D), bool.
        within: (B, C, ...), bool, ``known`` at the resolution at which the map is computed.
    """

    map: torch.Tensor
    known: torch.Tensor
    within: torch.Tensor


class SegmentationToDistance(nn.Module):
    """T_s2r: foreground probabilities to a signed distance map, differentiable, class by class.

    R = minmax(DT(Y)) - minmax(DT(1 - Y)) with DT(Y) the distance to the nearest voxel of Y, which is non-zero outside:
    R is in [-1, 1], negative inside, positive outside, as the paper's text says. The paper's names S_in and S_out
    (Eq. 3) are swapped with respect to that. min-max runs over the patch, for every sample and class by itself, so the
    two halves of the map have different units: each the largest distance of its half of the patch. The distances are in
    the unit of ``transform``: voxels, or mm if it has a ``spacing``. The same operator makes ground-truth maps from
    labels.

    Degenerate patches: +1 everywhere when nothing is foreground, -1 everywhere when all is. :meth:`with_validity`
    tells them from the others.

    Args:
        transform: distance transform of (N, 1, H, W, D): :class:`~scripts.distance.CascadedDistance` (the paper's),
            :class:`~scripts.distance.ExactDistance` or :class:`~scripts.distance.GeneralizedDistance`. Its attribute
            ``needs_binary_input`` says whether the probabilities are binarised for it.
        factor: the map is computed at this fraction of the resolution and upsampled; the paper uses 0.5 (section 4.10).
        gate: as in :func:`straight_through`; not used by a transform of soft input.
        detach_extrema: no gradient through the maximum that Eq. 4 divides by. The paper does not say; with it, one
            voxel (the farthest) no longer receives the gradient of the whole map.
        zero_inner_boundary: set the map to 0 on the foreground voxels that touch the background, as the level set of
            DTC (Eq. 1) and the signed distance map of DTML (Eq. 1) have it; else it is minus one voxel's share there.

    Raises:
        ValueError: when ``factor`` is not in (0, 1] or ``gate`` not in (0, 1/2].
    """

    def __init__(
        self,
        transform: nn.Module,
        *,
        factor: float = 0.5,
        gate: float | None = None,
        detach_extrema: bool = False,
        zero_inner_boundary: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < factor <= 1:
            raise ValueError(f"factor is {factor}; the resolution of the distance map must be in (0, 1].")
        if gate is not None and not 0 < gate <= 0.5:
            raise ValueError(f"gate is {gate}; it must be in (0, 0.5], or null for no gate.")
        self.transform = transform
        self.factor = factor
        self.gate = gate
        self.detach_extrema = detach_extrema
        self.zero_inner_boundary = zero_inner_boundary

    def forward(self, probability: torch.Tensor) -> torch.Tensor:
        """The signed distance map, float32, [-1, 1], of the shape (B, C, H, W, D) of ``probability`` ([0, 1])."""
        return self.with_validity(probability)[0]

    def with_validity(
        self, probability: torch.Tensor, *, within: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The signed distance map, and which of its channels are not degenerate.

        Args:
            probability: (B, C, H, W, D), [0, 1]; a label is one whose values are 0 and 1.
            within: of a :class:`PartialMap` that the map is to be compared with: the min-max runs over these voxels
                alone, as that of the partial map does. None for all.

        Returns:
            map: (B, C, H, W, D), float32, [-1, 1], negative inside; and valid: (B, C), bool, True where both
            foreground and background occur at the map's resolution.
        """
        with torch.autocast(probability.device.type, enabled=False):
            # Of a MONAI tensor only the values: each of its operations would look after what it knows of the image.
            probability = probability.as_subclass(torch.Tensor)
            size = probability.shape[2:]
            volumes = self._downsample(probability.float()).flatten(0, 1)[:, None]
            # Volumes are independent. A CPU takes them a few at a time, so that memory just used is used again.
            number = max(1, CPU_VOXELS // volumes[0].numel()) if volumes.device.type == "cpu" else len(volumes)
            if within is None:
                parts = [self._signed(part) for part in volumes.split(number)]
            else:
                inside = within.flatten(0, 1)[:, None].split(number)
                parts = [self._signed(part, where) for part, where in zip(volumes.split(number), inside)]
            signed = torch.cat([part for part, _ in parts]).reshape(*probability.shape[:2], *volumes.shape[2:])
            valid = torch.cat([part for _, part in parts]).reshape(probability.shape[:2])
            if signed.shape[2:] != size:
                signed = resize(signed, size)
            return signed, valid

    @torch.no_grad()
    def of_partial(self, label: torch.Tensor, known: torch.Tensor) -> PartialMap:
        """The map of a label as far as it is the same whatever the unknown voxels are.

        A distance is known where it is the same if all unknown voxels were foreground and if all were background: then
        no unknown voxel is nearer than the boundary, and (for the exact transforms) every other filling gives the same.
        Elsewhere, and on unknown voxels themselves, the map means nothing. Since the largest distance of the patch may
        be among the unknown ones, the min-max runs over the known ones alone. In a patch with unknown voxels where one
        of the two fillings is degenerate, nothing is known. At a reduced resolution a voxel is unknown if one that it
        is made of is.

        Args:
            label: (B, C, H, W, D), 0 or 1; what it is where it is unknown does not matter.
            known: (B, C, H, W, D), bool.
        """
        size, shape = label.shape[2:], label.shape[:2]
        with torch.autocast(label.device.type, enabled=False):
            # Trilinear weights are positive exactly for the voxels that contribute.
            unknown = (self._downsample((~known).float()) > 0).flatten(0, 1)[:, None]
            p = self._downsample(label.float() * known).flatten(0, 1)[:, None]
            p = straight_through(p) if self.transform.needs_binary_input else p
            least, most = p.masked_fill(unknown, 0), p.masked_fill(unknown, 1)
            lowest, highest = (self.transform(torch.cat([mask, 1 - mask])).chunk(2) for mask in (least, most))
            agree = (lowest[0] == highest[0]) & (lowest[1] == highest[1])
            if self.zero_inner_boundary:
                agree &= inner_boundary(least > 0.5) == inner_boundary(most > 0.5)
            degenerate = (least > 0.5).flatten(1).any(1).logical_not() | (most > 0.5).flatten(1).all(1)
            all_known = ~unknown.flatten(1).any(1)
            within = (agree & ~_per_volume(degenerate)) | _per_volume(all_known)
            signed = self._signed(least, within)[0].unflatten(0, shape)[:, :, 0]
            within = within.unflatten(0, shape)[:, :, 0]
            if within.shape[2:] == size:
                return PartialMap(signed, within, within)
            return PartialMap(resize(signed, size), resize((~within).float(), size) == 0, within)

    def _signed(self, p: torch.Tensor, within: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The map (N, 1, H, W, D) of the volumes ``p`` at their own resolution, and which are valid, (N,)."""
        if self.transform.needs_binary_input:
            p = straight_through(p, gate=self.gate)
        mask = p > 0.5
        # Minimum and maximum of bytes; any() and all() are much slower.
        voxels = mask.flatten(1).view(torch.uint8)
        full = voxels.amin(1).bool()
        valid = voxels.amax(1).bool() & ~full

        # One call measures outside and inside of every volume.
        outside, inside = self.transform(torch.cat([p, 1 - p])).chunk(2)
        signed = self._normalise(outside, within) - self._normalise(inside, within)
        constant = 1 - 2 * full.to(signed.dtype)
        signed = torch.where(_per_volume(valid), signed, _per_volume(constant))
        if self.zero_inner_boundary:
            signed = signed.masked_fill(inner_boundary(mask), 0)
        return signed, valid

    def _downsample(self, p: torch.Tensor) -> torch.Tensor:
        if self.factor == 1:
            return p
        size = [max(1, round(extent * self.factor)) for extent in p.shape[2:]]
        return resize(p, size)

    def _normalise(self, distance: torch.Tensor, within: torch.Tensor | None) -> torch.Tensor:
        """Min-max over the volume (Eq. 4). The minimum is 0, at the seeds, wherever the patch is not degenerate."""
        largest = distance if within is None else distance * within
        largest = largest.flatten(1).amax(1).reshape(-1, 1, 1, 1, 1)
        if self.detach_extrema:
            largest = largest.detach()
        return distance / torch.where(largest > 0, largest, torch.ones_like(largest))


def _per_volume(values: torch.Tensor) -> torch.Tensor:
    """(N,) as (N, 1, 1, 1, 1)."""
    return values[:, None, None, None, None]
