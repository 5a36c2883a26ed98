"""Label coding: converts between the integers of a label file and the foreground channels of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch

from scripts.errors import UserError

# What is unknown is one bit per class of a negative label, and labels are cached as int16.
MOST_PARTIAL_CLASSES = 15
LARGEST_VALUE = 32767


@dataclass(eq=False)
class LabelCoding:
    """Maps label values to foreground channels and probabilities back to label values.

    Exclusive labels (the default): channel c is the label value c + 1, 0 is background. A voxel is decoded as 0 where
    the largest probability is at most 1/2, else as the class of the largest.

    Overlapping regions: channel c is a union of label values, such as BraTS's nested whole tumour, core and enhancing
    tumour. They are decoded by threshold into one 0/1 map per region.

    Partial labels: a voxel may be unknown, for all channels or for some. A label file says so by ``ignore_value``, a
    case by the list of label values that were annotated in it. :meth:`mark` writes both into the label itself, as the
    negative of a number whose bit c is set where channel c is unknown, so that crops and flips need not know of it.

    Args:
        num_classes: foreground channels C.
        regions: for overlapping regions, the label values of each channel; None for exclusive labels.
        ignore_value: label value of voxels that nobody annotated, 1 to 32767; None if there is none.
        partial: whether there are cases in which not all label values were annotated, besides ``ignore_value``.
        class_names: of the C classes; their number is checked here because every training begins with this.

    Raises:
        UserError: when ``num_classes`` is below 1 or differs from the number of ``regions`` or ``class_names``, when a
            label value is negative or above 32767, when ``ignore_value`` is a label value or no whole number from 1 to
            32767, or when labels are partial and there are more than 15 classes.
    """

    num_classes: int
    regions: Sequence[Sequence[int]] | None = None
    _: KW_ONLY
    ignore_value: int | None = None
    partial: bool = False
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        num_classes, regions, class_names = self.num_classes, self.regions, self.class_names
        ignore_value = self.ignore_value
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}; there must be at least one foreground class.")
        if regions is not None and len(regions) != num_classes:
            raise UserError(f"regions has {len(regions)} entries; give one for each of the {num_classes} classes.")
        if class_names is not None and (
            isinstance(class_names, str) or not len(class_names) == len(set(class_names)) == num_classes
        ):
            raise UserError(
                f"class_names is {class_names!r}; it is a list with a name of its own for each of the {num_classes} "
                "foreground class(es), without the background."
            )
        if not 0 <= self.values[0] <= self.values[-1] <= LARGEST_VALUE:
            raise UserError(
                f"the label values are {self.values}; they must be from 0 to {LARGEST_VALUE}: renumber them."
            )
        self.partial = self.partial or ignore_value is not None
        if ignore_value in self.values:
            raise UserError(f"ignore_value is {ignore_value}, a label value; choose one that is not in {self.values}.")
        if ignore_value is not None and ignore_value not in range(1, LARGEST_VALUE + 1):
            # A larger value would wrap in int16, and a negative one is a mark.
            raise UserError(
                f"ignore_value is {ignore_value!r}; it must be a whole number from 1 to {LARGEST_VALUE}: write "
                "another value into those voxels of the label files, such as 255, and give that."
            )
        if self.partial and num_classes > MOST_PARTIAL_CLASSES:
            raise UserError(
                f"num_classes is {num_classes}; partial labels may have at most {MOST_PARTIAL_CLASSES} classes: merge "
                "some, or train on whole labels, without ignore_value and 'annotated'."
            )

    @property
    def values(self) -> list[int]:
        """Every label value that has a meaning, including 0; a file may also have ``ignore_value``."""
        if self.regions is None:
            return list(range(self.num_classes + 1))
        return sorted({0, *(value for region in self.regions for value in region)})

    @property
    def accepted(self) -> list[int]:
        """Every value allowed in a label file."""
        return self.values if self.ignore_value is None else [*self.values, self.ignore_value]

    @property
    def _channels(self) -> Sequence[Sequence[int]]:
        """The label values of each channel."""
        return [[c + 1] for c in range(self.num_classes)] if self.regions is None else self.regions

    def mark(self, label: torch.Tensor, annotated: Sequence[int] | None = None) -> torch.Tensor:
        """Marks unknown voxels in label values (..., H, W, D), signed, at least 16 bits; returns a new tensor.

        Where only some values were annotated, a voxel that has none of them may be background or have any of the
        others. A channel is known to be absent there if all of its values were annotated.

        Args:
            label: as it is in the file.
            annotated: the label values that were annotated in this case; None for all.
        """
        marked = label.clone()
        if annotated is not None:
            unknown = sum(1 << c for c, values in enumerate(self._channels) if not set(values) <= set(annotated))
            drawn = torch.tensor(list(annotated), device=label.device, dtype=label.dtype)
            marked.masked_fill_(~torch.isin(label, drawn), -unknown)
        if self.ignore_value is not None:
            marked.masked_fill_(label == self.ignore_value, 1 - (1 << self.num_classes))
        return marked

    def known(self, label: torch.Tensor) -> torch.Tensor | None:
        """Where the channels of marked label values are known: (B, C, H, W, D), bool; None if labels are not partial.

        Args:
            label: (B, 1, H, W, D), as :meth:`mark` returns it; ``ignore_value`` is understood, too.
        """
        if not self.partial:
            return None
        bits = (-label).clamp(min=0).to(torch.int64)
        if self.ignore_value is not None:
            bits = bits.masked_fill(label == self.ignore_value, (1 << self.num_classes) - 1)
        return torch.cat([bits & (1 << c) == 0 for c in range(self.num_classes)], dim=1)

    def encode(self, label: torch.Tensor) -> torch.Tensor:
        """Label values (B, 1, H, W, D) as foreground channels (B, C, H, W, D), float32, 0 or 1; 0 where unknown."""
        values = [torch.tensor(values, device=label.device, dtype=label.dtype) for values in self._channels]
        return torch.cat([torch.isin(label, value) for value in values], dim=1).float()

    def harden(self, probability: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, C, H, W, D), [0, 1], as decoded foreground channels of 0 and 1, same shape and dtype.

        Of exclusive labels only the most probable class stays, where it is above 1/2.
        """
        present = probability > 0.5
        if self.regions is None and self.num_classes > 1:
            largest = probability.argmax(1, keepdim=True)  # of equal ones the first
            present &= torch.zeros_like(present).scatter_(1, largest, True)
        return present.to(probability.dtype)

    def decode(self, probability: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, C, H, W, D), [0, 1], as label values, uint8.

        Returns:
            (B, 1, H, W, D) label values for exclusive labels, (B, C, H, W, D) of 0 and 1 for overlapping regions.
        """
        if self.regions is not None:
            return (probability > 0.5).to(torch.uint8)
        # Class by class: the indices of torch.max are int64, two gigabytes and more for a large CT.
        label = torch.zeros_like(probability[:, :1], dtype=torch.uint8)
        largest = torch.full_like(probability[:, :1], 0.5)
        for c in range(self.num_classes):
            channel = probability[:, c : c + 1]
            label.masked_fill_(channel > largest, c + 1)
            largest = torch.maximum(largest, channel)
        return label
