"""Label coding: between the integers of a label file and the foreground channels of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class LabelCoding:
    """Maps label values to foreground channels and probabilities back to label values.

    Exclusive labels (the default): channel c is the label value c + 1, 0 is background. A voxel is decoded as 0 where
    the largest probability is at most 1/2, else as the class of the largest.

    Overlapping regions: channel c is a union of label values, such as BraTS's nested whole tumour, core and enhancing
    tumour. They are decoded by threshold into one 0/1 map per region.

    Args:
        num_classes: foreground channels C.
        regions: for overlapping regions, the label values of each channel; None for exclusive labels.

    Raises:
        ValueError: when ``num_classes`` is below 1 or differs from the number of ``regions``.
    """

    def __init__(self, num_classes: int, regions: Sequence[Sequence[int]] | None = None) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; there must be at least one foreground class.")
        if regions is not None and len(regions) != num_classes:
            raise ValueError(f"regions has {len(regions)} entries; give one for each of the {num_classes} classes.")
        self.num_classes = num_classes
        self.regions = regions

    @property
    def values(self) -> list[int]:
        """Every label value that may occur in a label file, 0 included."""
        if self.regions is None:
            return list(range(self.num_classes + 1))
        return sorted({0, *(value for region in self.regions for value in region)})

    def encode(self, label: torch.Tensor) -> torch.Tensor:
        """Label values (B, 1, H, W, D) as foreground channels (B, C, H, W, D), float32, 0 or 1."""
        regions = [[c + 1] for c in range(self.num_classes)] if self.regions is None else self.regions
        values = [torch.tensor(region, device=label.device, dtype=label.dtype) for region in regions]
        return torch.cat([torch.isin(label, value) for value in values], dim=1).float()

    def decode(self, probability: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, C, H, W, D), [0, 1], as uint8.

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
