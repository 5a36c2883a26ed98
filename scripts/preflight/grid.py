"""Grid: the volumes as the network sees them, against the patch, the turns and each other, and what they take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from monai.transforms import RandRotate90d

from scripts.data import Problem
from scripts.data.contents import Contents
from scripts.data.nifti import Header

from .whole_dataset import TRAINING, WholeDataset

# A voxel size that differs from the median by this factor is pointed out.
UNUSUAL_SPACING = 2.0
# Voxel sizes of two axes that quarter turns swap may differ by this factor: a turn stretches an object by it along one
# axis and shrinks it along the other, as much as the scaling by 0.7 to 1.4 that is usual as an augmentation.
TURNABLE = 1.5
# Names of files that a problem lists.
NAMED = 3


@dataclass
class Grid:
    """The grids of a data set.

    Args:
        data: see there.
        spacing: mm, to which volumes are resampled; None leaves them.
        patch_size: voxels; None if it is not known.
        cache_rate: share of the training's volumes that lie in memory.
    """

    data: WholeDataset
    spacing: Sequence[float] | None = None
    patch_size: Sequence[int] | None = None
    cache_rate: float = 1.0

    def problems(self) -> Iterator[Problem]:
        """All of them, a kind of them in one warning."""
        headers = [image.header for _, image in self.data.images()]
        edges = np.array([ras_edges(header) for header in headers])
        patch = self.patch_size or [0, 0, 0]
        shapes = {header.path: network_shape(header, self.spacing) for header in headers}
        small = {path: shape for path, shape in shapes.items() if any(n < p for n, p in zip(shape, patch))}
        if small:
            least = tuple(int(n) for n in np.min(list(small.values()), axis=0))
            what = f"{_is(small)} in at least one axis smaller than patch_size {list(patch)} (least {least})"
            remedy = "lower patch_size, in multiples of 16, if that is much of them"
            file = _named(list(small), len(shapes))
            yield Problem("patch", file, f"{what} and padded with zeros", remedy, level="warning")
        if self.spacing is None and headers:
            median = np.median(edges, axis=0)
            factor = np.maximum(edges / median, median / edges).max(axis=1)
            if unusual := [header.path for header, much in zip(headers, factor) if much > UNUSUAL_SPACING]:
                rounded = [float(f"{edge:.3g}") for edge in median]
                what = f"{_is(unusual)} of another voxel size than the median {rounded} mm by a factor above"
                remedy, file = f'resample all: --spacing "{rounded}"', _named(unusual, len(headers))
                yield Problem("spacing", file, f"{what} {UNUSUAL_SPACING:g}", remedy, level="warning")
        yield from self._turns()

    def _turns(self) -> Iterator[Problem]:
        """One warning where random quarter turns swap two axes of clearly different voxel size."""
        edges = [network_spacing(image.header, self.spacing) for _, image in self.data.images(*TRAINING)]
        for turn in (step for step in self.data.augmentation or () if isinstance(step, RandRotate90d)):
            first, second = (axis % 3 for axis in turn.spatial_axes)
            sizes = sorted((size[[first, second]] for size in edges), key=lambda size: size.max() / size.min())
            if count := sum(size.max() / size.min() > TURNABLE for size in sizes):
                worst = sizes[-1]
                what = (
                    f"turns {count} of {len(edges)} images about, whose voxels along axes {first} and {second} differ "
                    f"by up to {worst.max() / worst.min():.2g} times ({worst[0]:.3g} and {worst[1]:.3g} mm), so that "
                    "thick and thin are swapped"
                )
                remedy = "use flips only, as a plan does (docs/how_to/anisotropic_data.md has the overlay)"
                yield Problem("augmentation", "augmentation (RandRotate90d)", what, remedy, level="warning")
                return

    def overview(self) -> dict[str, Any]:
        """What a reader wants to see at a glance: counts, ranges of shape and spacing, orientations, label values."""
        headers = [image.header for _, image in self.data.images()]
        lists = self.data.lists
        facts: dict[str, Any] = {"cases": {name: len(lists[name]) for name in lists}, "files": len(self.data.found)}
        if headers:
            shapes = np.array([header.shape[:3] for header in headers])
            edges = np.array([header.spacing for header in headers]).round(4)
            facts["shape"] = [shapes.min(0).tolist(), "to", shapes.max(0).tolist()]
            facts["spacing (mm)"] = [edges.min(0).tolist(), "to", edges.max(0).tolist()]
            codes = Counter("".join(nibabel.aff2axcodes(header.affine)) for header in headers)
            facts["orientation"] = dict(codes.most_common())
        labels = [label for _, _, label in self.data.labels() if isinstance(label, Contents)]
        if labels:
            facts["label values"] = sorted({int(value) for label in labels for value in label.values})[:20]
        return facts

    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of preprocessed cases, float32 on the network's grid: in memory (with validation) and in files."""
        memory, files = 0.0, 0.0
        for name in (*TRAINING, "validation"):
            share = self.cache_rate if name in TRAINING else 1
            headers = [image.header for _, image in self.data.images(name)]
            headers += [label.header for _, _, label in self.data.labels(name) if isinstance(label, Contents)]
            for header in headers:
                size = 4 * math.prod(network_shape(header, self.spacing)) * header.channels
                memory, files = memory + share * size, files + (1 - share) * size
        return round(memory), round(files)

    def mask_bytes(self) -> int:
        """Bytes of the masks of the test cases, uint8, not counting on their compression."""
        return sum(math.prod(image.header.shape[:3]) for _, image in self.data.images("test"))


def ras_edges(header: Header) -> np.ndarray:
    """Voxel size (3,), mm, in the order right, anterior, superior."""
    return header.spacing[np.argsort(nibabel.io_orientation(header.affine)[:, 0])]


def network_spacing(header: Header, spacing: Sequence[float] | None) -> np.ndarray:
    """Voxel size (3,), mm, of a volume as the network sees it, see :func:`network_shape`."""
    edges = ras_edges(header)
    target = edges if spacing is None else np.asarray(spacing, dtype=float)
    return np.where(np.isfinite(target) & (target > 0), target, edges)


def network_shape(header: Header, spacing: Sequence[float] | None) -> tuple[int, ...]:
    """Shape (3,) of a volume as the network sees it: RAS axes, resampled to ``spacing`` (mm) if it is given."""
    shape = np.array(header.shape[:3])[np.argsort(nibabel.io_orientation(header.affine)[:, 0])]
    if spacing is not None:
        ratio = ras_edges(header) / network_spacing(header, spacing)
        shape = np.maximum(np.round((shape - 1) * ratio + 1), 1)
    return tuple(int(n) for n in shape)


def _is(files: Any) -> str:
    return "is" if len(files) == 1 else "are"


def _named(files: Sequence[str], among: int) -> str:
    """A file, or how many of how many with the names of the first."""
    if len(files) == 1:
        return files[0]
    more = ", ..." if len(files) > NAMED else ""
    return f"{len(files)} of {among} images ({', '.join(files[:NAMED])}{more})"
