"""Volumes: a table of how many millilitres of each class every case has."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.data import LabelCoding
from scripts.errors import UserError
from scripts.files import replacing
from scripts.ranks import rank

from .outputs import name_of

COLUMNS = ("case", "class", "voxels", "millilitres")


def class_volumes(mask: MetaTensor, label_coding: LabelCoding) -> list[tuple[int, float]]:
    """Voxels and millilitres of every class in a mask, by the affine of its image.

    Args:
        mask: (1, H, W, D) label values or, for overlapping regions, (C, H, W, D) of 0 and 1.
        label_coding: says which of the two they are, and C.
    """
    voxel = abs(torch.linalg.det(mask.affine[:3, :3].double()).item()) / 1000  # mm³ to ml
    counts = []
    for c in range(label_coding.num_classes):
        channel, value = (0, c + 1) if label_coding.regions is None else (c, 1)
        counts.append(int((mask[channel] == value).sum()))
    return [(count, count * voxel) for count in counts]


def checked_names(class_names: Sequence[str] | None, label_coding: LabelCoding) -> list[str]:
    """``class_names``, or "1", "2", ..., "C".

    Raises:
        UserError: when they are not as many as there are classes.
    """
    count = label_coding.num_classes
    names = [str(name) for name in class_names or range(1, count + 1)]
    if len(names) != count:
        raise UserError(f"class_names is {names}; there must be {count}, one for each class.")
    return names


class SaveVolumesd(MapTransform):
    """Puts the volume of every class of a case into ``<output_dir>/volumes.csv``, one row per case and class.

    A case that comes again replaces its rows; those of other cases stay, so that a run that goes on where an earlier
    one stopped completes its table. Of several processes each has a table of its own, ``volumes_rank<n>.csv`` from the
    second on.

    Args:
        keys: of the decoded masks in the geometry of the original image, as MetaTensors: (1, H, W, D) label values
            or, for overlapping regions, (C, H, W, D) of 0 and 1. The affine gives the volume of a voxel.
        label_coding: says which of the two they are, and C.
        output_dir: folder of the table, made if missing.
        class_names: names of the C classes. Default: "1", "2", ..., "C".
        root: folder of the images; the case is called after its path below it.

    Raises:
        UserError: when ``class_names`` has another length than C.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_coding: LabelCoding,
        output_dir: str | Path,
        class_names: Sequence[str] | None = None,
        root: str | Path = "",
    ) -> None:
        super().__init__(keys)
        self.class_names = checked_names(class_names, label_coding)
        self.label_coding = label_coding
        self.root = root
        own = f"_rank{rank()}" if rank() else ""
        self.path = Path(output_dir) / f"volumes{own}.csv"

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            mask = data[key]
            case = name_of(mask.meta["filename_or_obj"], self.root)
            rows = [
                {"case": case, "class": name, "voxels": count, "millilitres": round(millilitres, 6)}
                for name, (count, millilitres) in zip(self.class_names, class_volumes(mask, self.label_coding))
            ]
            self._replace(case, rows)
        return dict(data)

    def _replace(self, case: str, rows: list[dict[str, Any]]) -> None:
        """Write the table anew with ``rows`` instead of those of ``case``."""
        others: list[dict[str, Any]] = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                others = [row for row in csv.DictReader(file) if row["case"] != case]
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*others, *rows])
