"""Segmentation to signed distance: binarise, measure inside and outside, normalise, subtract (T_s2r, DBiSL Eq. 2-5)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from scripts.errors import UserError


def straight_through(probability: torch.Tensor) -> torch.Tensor:
    """Zeros and ones of the same shape, exactly [p > 1/2], of ``probability`` in [0, 1]; backward the identity."""
    # (p - p) is exactly zero; hard + p - p is not, and leaves false seeds of 6e-8.
    return (probability > 0.5).to(probability.dtype) + (probability - probability.detach())


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
    """

    map: torch.Tensor
    known: torch.Tensor


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
        transform: distance transform of binary seeds (N, 1, H, W, D): :class:`~scripts.distance.ExactDistance` or
            :class:`~scripts.distance.CascadedDistance` (the paper's).
        factor: the distances are computed at this fraction of the resolution and upsampled; the paper uses 0.5 (section
            4.10).
        subtract_first: what is upsampled when ``factor`` is below 1. True: the difference of the two distances in
            their own unit, whose zero lies where the mask's boundary does. False: each distance by itself. That is
            the literal order of Eq. 2-5, but each half is then divided by another number, so that the zero moves
            outwards: at 0.5 a map of a hippocampus has a third more voxels inside than its mask.
        detach_extrema: no gradient through the maximum that Eq. 4 divides by. The paper does not say; with it, one
            voxel (the farthest) no longer receives the gradient of the whole map.
        zero_inner_boundary: set the map to 0 on the foreground voxels that touch the background, as the level set of
            DTC (Eq. 1) and the signed distance map of DTML (Eq. 1) have it; else it is minus one voxel's share there.

    Raises:
        UserError: when ``factor`` is not in (0, 1].
    """

    def __init__(
        self,
        transform: nn.Module,
        *,
        factor: float = 1.0,
        subtract_first: bool = True,
        detach_extrema: bool = False,
        zero_inner_boundary: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < factor <= 1:
            raise UserError(f"factor is {factor}; the resolution of the distance map must be in (0, 1].")
        self.transform = transform
        self.factor = factor
        self.subtract_first = subtract_first
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
            within: (B, C, H, W, D), bool; the min-max runs over these voxels only, as that of a :class:`PartialMap`
                that the map is to be compared with does. None for all.

        Returns:
            map: (B, C, H, W, D), float32, [-1, 1], negative inside; and valid: (B, C), bool, True where both
            foreground and background occur at the map's resolution.
        """
        with torch.autocast(probability.device.type, enabled=False):
            # Of a MONAI tensor only the values: each of its operations would look after what it knows of the image.
            probability = probability.as_subclass(torch.Tensor)
            p = straight_through(self._volumes(probability.float()))
            signed, valid = self._signed(p, probability.shape[2:], within)
            return signed.reshape(probability.shape), valid.reshape(probability.shape[:2])

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
        size, shape = label.shape[2:], label.shape
        with torch.autocast(label.device.type, enabled=False):
            # Trilinear weights are positive exactly for the voxels that contribute.
            unknown = self._volumes((~known).float()) > 0
            p = straight_through(self._volumes(label.float() * known))
            least, most = p.masked_fill(unknown, 0), p.masked_fill(unknown, 1)
            lowest, highest = (self.transform(torch.cat([mask, 1 - mask])).chunk(2) for mask in (least, most))
            agree = (lowest[0] == highest[0]) & (lowest[1] == highest[1])
            if self.zero_inner_boundary:
                agree &= inner_boundary(least > 0.5) == inner_boundary(most > 0.5)
            degenerate = (least > 0.5).flatten(1).any(1).logical_not() | (most > 0.5).flatten(1).all(1)
            all_known = ~unknown.flatten(1).any(1)
            settled = (agree & ~_per_volume(degenerate)) | _per_volume(all_known)
            if settled.shape[2:] != size:
                settled = _resized((~settled).float(), size) == 0
            known = settled.reshape(shape)
            # What the unknown voxels are no longer matters where the map is known.
            return PartialMap(self._signed(least, size, known)[0].reshape(shape), known)

    def _volumes(self, values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D) at the resolution of the distances, (B * C, 1, h, w, d)."""
        volumes = values.flatten(0, 1)[:, None]
        if self.factor == 1:
            return volumes
        return _resized(volumes, [max(1, round(extent * self.factor)) for extent in values.shape[2:]])

    def _signed(
        self, p: torch.Tensor, size: Sequence[int], within: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The map (N, 1, *size) of the volumes ``p`` (N, 1, h, w, d), and which are valid, (N,)."""
        mask = p > 0.5
        # Minimum and maximum of bytes; any() and all() are much slower.
        voxels = mask.flatten(1).view(torch.uint8)
        full = voxels.amin(1).bool()
        valid = voxels.amax(1).bool() & ~full

        # One call measures outside and inside of every volume.
        outside, inside = self.transform(torch.cat([p, 1 - p])).chunk(2)
        if self.zero_inner_boundary:
            inside = inside.masked_fill(inner_boundary(mask), 0)
        if p.shape[2:] != size:
            if self.subtract_first:
                signed = _resized(outside - inside, size)
                outside, inside = signed.clamp(min=0), (-signed).clamp(min=0)
            else:
                outside, inside = _resized(outside, size), _resized(inside, size)
        known = None if within is None else within.flatten(0, 1)[:, None]
        signed = self._normalise(outside, known) - self._normalise(inside, known)
        constant = 1 - 2 * full.to(signed.dtype)
        return torch.where(_per_volume(valid), signed, _per_volume(constant)), valid

    def _normalise(self, distance: torch.Tensor, within: torch.Tensor | None) -> torch.Tensor:
        """Min-max over the volume (Eq. 4). The minimum is 0, at the seeds, wherever the patch is not degenerate."""
        largest = distance if within is None else distance * within
        largest = largest.flatten(1).amax(1).reshape(-1, 1, 1, 1, 1)
        if self.detach_extrema:
            largest = largest.detach()
        return distance / torch.where(largest > 0, largest, torch.ones_like(largest))


def _resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def _per_volume(values: torch.Tensor) -> torch.Tensor:
    """(N,) as (N, 1, 1, 1, 1)."""
    return values[:, None, None, None, None]
