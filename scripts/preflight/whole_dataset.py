"""Whole data set: what shows only when cases are compared: copies, masks among images, missing classes, sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.transforms import RandAxisFlipd, RandFlipd, RandRotate90d

from scripts.data import LabelCoding, Problem
from scripts.data.checks import images_of
from scripts.data.contents import Contents, File, Finding
from scripts.data.laterality import SIDE_AXIS, told_by_side
from scripts.data.unlikely import Label, unlikely_labels

# The two lists of training; a copy in both is no leak.
TRAINING = ("labeled", "unlabeled")
# Affines of two files on one grid differ by no more, mm.
SAME_GRID = 1e-3
SHOWN_VALUES = 5


@dataclass
class WholeDataset:
    """A data set as a whole, and what is wrong with it.

    Args:
        lists: cases by list: labeled, unlabeled, validation, test.
        found: what was found in their files.
        label_coding: the label values; None if they are not known.
        augmentation: random transforms.
        intensity_window: to which intensities are clipped.
        unlabeled_batch_size: 0 if no unlabeled crop is drawn.
    """

    lists: Mapping[str, Sequence[Mapping[str, Any]]]
    found: Mapping[File, Finding]
    label_coding: LabelCoding | None = None
    augmentation: Sequence[Any] | None = None
    intensity_window: Sequence[float] | None = None
    unlabeled_batch_size: int = 0

    def images(self, *names: str) -> list[tuple[str, Contents]]:
        """The usable image files of all cases, or of those of some lists, with the list that each is in."""
        files = [(name, path) for name in names or self.lists for case in self.lists[name] for path in images_of(case)]
        usable = [(name, self.found[path, False]) for name, path in files]
        return [(name, image) for name, image in usable if isinstance(image, Contents)]

    def labels(self, *names: str) -> list[tuple[str, Mapping[str, Any], Finding | None]]:
        """The list, the case and what was found in its label, of all cases that have one."""
        cases = [(name, case) for name in names or self.lists for case in self.lists.get(name, ()) if "label" in case]
        return [(name, case, self.found.get((case["label"], True))) for name, case in cases]

    def problems(self) -> Iterator[Problem]:
        """All of them."""
        checks = (self._copies, self._classes, self._labels, self._sides, self._masks, self._outliers, self._unlabeled)
        for check in checks:
            yield from check()

    def _copies(self) -> Iterator[Problem]:
        """Images with the same voxels: an error where one is trained on and the other tested with. Labels: a warning.

        The voxels are compared, not the files, so another compression or data type does not hide a copy; flipping,
        resampling or cropping does. Constant images and empty labels have been reported as that.
        """
        copies: dict[str, list[tuple[str, Contents]]] = {}
        for name, image in self.images():
            if any(channel.minimum != channel.maximum for channel in image.channels):
                copies.setdefault(image.digest, []).append((name, image))
        for (first_name, first), *others in copies.values():
            for name, copy in others:
                sides = {"training" if side in TRAINING else side for side in (first_name, name)}
                what = f"({name}) has the same voxels as {first.header.path} ({first_name})"
                if len(sides) > 1:
                    remedy = "take one out: results on cases that were trained on, or chosen by, say nothing"
                    yield Problem("copies", copy.header.path, what, remedy)
                else:
                    remedy = "take one out if that is not meant"
                    yield Problem("copies", copy.header.path, what, remedy, level="warning")
        labels: dict[str, dict[str, Contents]] = {}
        for _, case, label in self.labels():
            shown = self.found[images_of(case)[0], False]
            if isinstance(label, Contents) and isinstance(shown, Contents) and len(label.values) > 1:
                # An image that is there twice has its label twice.
                labels.setdefault(label.digest, {}).setdefault(shown.digest, label)
        for first_label, *other_labels in (list(of_images.values()) for of_images in labels.values()):
            for label in other_labels:
                what = f"has the same voxels as {first_label.header.path}, the label of another image"
                yield Problem("copies", label.header.path, what, "check which case it belongs to", level="warning")

    def _classes(self) -> Iterator[Problem]:
        """Foreground that no labeled case has: an error if there is none at all, a warning for a single value.

        Of a case with "annotated", only the values that it lists count, as in the training.
        """
        labels = self.labels("labeled")
        values: set[int] = set()
        for _, case, label in labels:
            if not isinstance(label, Contents):
                return  # without all of them nothing can be said
            own = {int(value) for value in label.values}
            values |= own & set(case["annotated"]) if "annotated" in case else own
        partial = any("annotated" in case for _, case, _ in labels)
        counted = " that their 'annotated' lets count" if partial else ""
        remedy = "put cases {} first in 'training', or raise num_labeled"
        coding = self.label_coding
        missing = [value for value in (coding.values if coding else []) if value and value not in values]
        if labels and not values - {0, coding.ignore_value if coding else 0}:
            what = f"cases ({len(labels)}) have no foreground voxel at all{counted}"
            yield Problem("classes", "labeled", what, remedy.format("with foreground"))
        elif labels and missing:
            what = f"cases ({len(labels)}) have no voxel of the label values {missing}{counted}"
            remedy += ", or list them in 'annotated' where they were annotated" if partial else ""
            yield Problem("classes", "labeled", what, remedy.format("that have them"), level="warning")

    def _labels(self) -> Iterator[Problem]:
        """Labels that are out of line with the others, each file once."""
        labels = {
            case["label"]: Label(label, case.get("annotated"))
            for _, case, label in self.labels()
            if isinstance(label, Contents)
        }
        ignore_value = self.label_coding.ignore_value if self.label_coding else None
        yield from unlikely_labels(list(labels.values()), ignore_value=ignore_value)

    def _sides(self) -> Iterator[Problem]:
        """One warning where random mirror images exchange what only its side tells apart."""
        exchanging = [type(step).__name__ for step in self.augmentation or () if _exchanges_sides(step)]
        coding = self.label_coding
        ignored = coding.ignore_value if coding else None
        moments = [
            {value: own for value, own in label.moments.items() if value != ignored}
            for _, _, label in self.labels("labeled")
            if isinstance(label, Contents)
        ]
        if exchanging and (told := told_by_side(coding.class_names if coding else None, moments)):
            what = f"shows left as right, and {told}: that cannot be learned from mirror images that keep their labels"
            remedy = (
                "add configs/augmentations/keep_sides.json behind the other config files "
                "(docs/how_to/left_and_right.md), or leave it if something else tells them apart"
            )
            name = f"augmentation ({', '.join(dict.fromkeys(exchanging))})"
            yield Problem("left and right", name, what, remedy, level="warning")

    def _masks(self) -> Iterator[Problem]:
        """Images with few values in long runs: an error for one that lies on the grid of another image, else a warning.

        A channel of a case of several is left alone: a mask may be one. Where image and label are swapped, the label
        says so.
        """
        swapped = {
            case["image"]
            for _, case, label in self.labels()
            if isinstance(case["image"], str)
            and isinstance(image := self.found[case["image"], False], Contents)
            and isinstance(label, Contents)
            and 0 < len(image.mask_values) < len(label.values)
        }
        single = {case["image"] for cases in self.lists.values() for case in cases if isinstance(case["image"], str)}
        usable = [image for _, image in self.images()]
        for image in usable:
            header = image.header
            if not image.mask_values or header.path not in single - swapped or header.channels > 1:
                continue
            twin = next((other for other in usable if not other.mask_values and _same_grid(image, other)), None)
            shown = ", ".join(f"{value:g}" for value in image.mask_values[:SHOWN_VALUES])
            shown += ", ..." if len(image.mask_values) > SHOWN_VALUES else ""
            what = f"is given as an image and looks like a mask (its values are {shown})"
            what += f" on the grid of {twin.header.path}" if twin else ""
            remedy = "take it out of the images, or make it the label of its image"
            yield Problem("mask", header.path, what, remedy, level="error" if twin else "warning")

    def _outliers(self) -> Iterator[Problem]:
        """What makes an image flat: a few voxels far off (an error), or a value of its own outside of the scan."""
        for _, image in self.images() if not self.intensity_window else ():
            for number, channel in enumerate(image.channels):
                if not channel.outliers + channel.padded:
                    continue
                which = f" in channel {number} (from 0)" if len(image.channels) > 1 else ""
                low, high = channel.rest
                what = (
                    f"has {channel.outliers + channel.padded} voxel(s){which} far off, the extremes being "
                    f"{channel.minimum:g} and {channel.maximum:g}, and {low:g} to {high:g} elsewhere: scaled to unit "
                    f"variance, all else is {'flat' if channel.outliers else 'nearly flat'}"
                )
                remedy = "replace those voxels, or clip them with intensity_window"
                level = "error" if channel.outliers else "warning"
                yield Problem("intensities", image.header.path, what, remedy, level=level)

    def _unlabeled(self) -> Iterator[Problem]:
        """One warning where unlabeled crops are asked for and there is no case to draw them from."""
        if self.unlabeled_batch_size and not self.lists.get("unlabeled"):
            what = (
                "finds no unlabeled case: every batch has labeled crops only, so that terms for unlabeled crops are "
                "missing and those for all crops, such as DBiSL's consistency and pseudo-labels, see no others"
            )
            remedy = (
                "add images to the list 'unlabeled' (--unlabeled_dir of tools.preparation.dataset), or train with "
                "configs/methods/supervised.json for labels only"
            )
            name = f"unlabeled_batch_size {self.unlabeled_batch_size}"
            yield Problem("unlabeled", name, what, remedy, level="warning")


def _exchanges_sides(transform: Any) -> bool:
    """Whether a random transform mirrors over the axis of left and right, or turns it by 90 or 180 degrees."""
    if isinstance(transform, RandFlipd):
        axes = transform.flipper.spatial_axis
        return axes is None or SIDE_AXIS in (np.atleast_1d(axes) % 3)
    if isinstance(transform, RandRotate90d):
        return SIDE_AXIS in (axis % 3 for axis in transform.spatial_axes)
    return isinstance(transform, RandAxisFlipd)


def _same_grid(first: Contents, second: Contents) -> bool:
    same_shape = first.header.shape[:3] == second.header.shape[:3]
    return same_shape and np.allclose(first.header.affine, second.header.affine, atol=SAME_GRID)
