"""Results: reads back what a finished evaluation wrote, with the images and references that it was about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation

from scripts.data import DataError, Datalist, LabelCoding, NiftiReader, case_name, images_of
from scripts.evaluation.metrics import METRIC_NAMES
from tools.tables import read_csv


@dataclass
class CaseVolumes:
    """One case, its axes towards the patient's right, anterior and superior.

    Attributes:
        image: (H, W, D), float32, any unit; the first modality.
        reference: (C, H, W, D), bool.
        prediction: (C, H, W, D), bool.
        spacing: of a voxel, mm.
        known: (C, H, W, D), bool, where the label says whether there is reference; None for everywhere.
    """

    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float]
    known: np.ndarray | None = None


class EvaluationResults:
    """The tables of an evaluation, and its cases in the order of their Dice.

    Args:
        output_dir: of the evaluation: metrics.csv, metrics_summary.csv and the masks; failures.csv if cases failed.
        dataset_dir: of the data set, whose dataset.json names images and references.
        regions: as in the config, for overlapping regions; None for exclusive labels.
        ignore_value: as in the config, of voxels that nobody annotated; None if there are none.

    Raises:
        DataError: when the folder holds no finished evaluation, or ``regions`` do not fit its classes.
    """

    def __init__(
        self,
        output_dir: str | Path,
        dataset_dir: str | Path,
        *,
        regions: Sequence[Sequence[int]] | None = None,
        ignore_value: int | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.rows = self._read("metrics.csv")
        self.summary = self._read("metrics_summary.csv")
        if not self.rows:
            raise DataError(f"{self.output_dir / 'metrics.csv'} has no case: every one failed, see failures.csv.")
        self.failures = self._read("failures.csv") if (self.output_dir / "failures.csv").is_file() else []
        self.metrics = [name for name in METRIC_NAMES if name in self.rows[0]]
        self.classes = list(dict.fromkeys(row["class"] for row in self.rows))
        self.cases = list(dict.fromkeys(row["case"] for row in self.rows))
        if regions is not None and len(regions) != len(self.classes):
            raise DataError(f"regions has {len(regions)} entries and {self.output_dir} classes {self.classes}.")
        datalist = Datalist(dataset_dir)
        partial = datalist.partial
        self.label_coding = LabelCoding(len(self.classes), regions, ignore_value=ignore_value, partial=partial)
        # "test" or "validation"; tables of older versions do not say it.
        self.case_list = self.rows[0].get("list")
        # The list that was evaluated comes last, so that of cases of the same name its own is taken.
        lists = [datalist.validation, datalist.test]
        if self.case_list == "validation":
            lists.reverse()
        listed = [*datalist.training, *lists[0], *lists[1]]
        self.files = {case_name(images_of(case)[0]): case for case in listed if "label" in case}
        self.dataset_json = datalist.path

    def value(self, case: str, name: str, metric: str) -> float:
        """A metric of a case and class; NaN where it has none."""
        (row,) = [row for row in self.rows if row["case"] == case and row["class"] == name]
        return float(row[metric] or "nan")

    def values(self, name: str, metric: str) -> list[float]:
        """A metric of a class, for all cases in their order."""
        return [self.value(case, name, metric) for case in self.cases]

    def dice(self, case: str) -> float:
        """The Dice of a case, averaged over those of its classes that are known; NaN if none is."""
        values = [self.value(case, name, "dice") for name in self.classes]
        measured = [value for value in values if not math.isnan(value)]
        return sum(measured) / len(measured) if measured else math.nan

    def ordered(self) -> list[str]:
        """The cases from the lowest to the highest Dice; those without any come last."""
        return sorted(self.cases, key=lambda case: (math.isnan(self.dice(case)), self.dice(case)))

    def chosen(self) -> dict[str, str]:
        """The case with the lowest Dice, that in the middle (of an even number the lower) and that with the highest.

        Keys "worst", "median" and "best"; of fewer than three cases, those that are not the same.
        """
        order = [case for case in self.ordered() if not math.isnan(self.dice(case))]
        if not order:
            raise DataError(f"{self.output_dir / 'metrics.csv'} has no case with a Dice: no label of them is known.")
        named = {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}
        found: dict[str, str] = {}
        for name in ("worst", "best", "median"):
            if named[name] not in found.values():
                found[name] = named[name]
        return {name: found[name] for name in named if name in found}

    def label_values(self, channel: int) -> list[int]:
        """The label values that make up a class."""
        regions = self.label_coding.regions
        return [channel + 1] if regions is None else list(regions[channel])

    def paths(self, case: str) -> dict[str, Any]:
        """The image and label of a case in dataset.json.

        Raises:
            DataError: when it is not there.
        """
        if case not in self.files:
            raise DataError(
                f"{self.dataset_json} has no case {case} with a label: give the evaluated data set's folder."
            )
        return self.files[case]

    def volumes(self, case: str) -> CaseVolumes:
        """Image, reference and prediction of a case.

        Raises:
            DataError: when a file is missing, prediction and reference do not lie on the same grid, or the label has
                another value than those of the classes and ``ignore_value``.
        """
        paths = self.paths(case)
        mask = self.output_dir / f"{case}_seg.nii.gz"
        if not mask.is_file():
            raise DataError(f"{mask} does not exist: evaluate again, or do not move the masks.")
        read = Compose([LoadImage(reader=NiftiReader), EnsureChannelFirst(), Orientation("RAS", labels=None)])
        image, label, prediction = read(paths["image"]), read(paths["label"]), read(str(mask))
        maps = self.label_coding.regions is not None
        if prediction.shape[1:] != label.shape[1:] or len(prediction) != (len(self.classes) if maps else 1):
            raise DataError(
                f"{mask} has the shape {tuple(prediction.shape)} and its reference {tuple(label.shape)}, channels "
                "first: they must be of the same case; for overlapping regions give --regions as in the config."
            )
        values = label.as_tensor().round().to(torch.int32)
        unexpected = sorted(set(values.unique().tolist()) - set(self.label_coding.accepted))
        if unexpected:
            raise DataError(
                f"{paths['label']} has the value {unexpected[0]} and {self.label_coding.accepted} are expected: give "
                "--ignore_value as in the config."
            )
        marked = self.label_coding.mark(values, paths.get("annotated"))[None]
        known = self.label_coding.known(marked)
        encode = self.label_coding.encode
        return CaseVolumes(
            image=image[0].numpy(),
            reference=encode(marked)[0].numpy() > 0.5,
            prediction=(prediction if maps else encode(prediction.as_tensor()[None])[0]).numpy() > 0.5,
            spacing=tuple(label.pixdim.tolist()),
            known=None if known is None or known.all() else known[0].numpy(),
        )

    def _read(self, name: str) -> list[dict[str, str]]:
        path = self.output_dir / name
        try:
            return read_csv(path)
        except FileNotFoundError:
            raise DataError(
                f"{path} does not exist: give the output_dir of an evaluation that has finished as --output_dir."
            ) from None


def shown(value: str | float | None, digits: int = 3) -> str:
    """A figure of a table as text; "–" where there is none."""
    number = float(value) if value not in (None, "") else math.nan
    return "–" if math.isnan(number) else f"{number:.{digits}f}"
