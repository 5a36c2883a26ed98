"""Case metrics: an ignite handler that writes the metrics of every case and class, and their summary, as CSV files."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing

from scripts.errors import UserError
from scripts.ranks import gathered, rank

from .metrics import METRIC_NAMES, checked_tolerance, segmentation_metrics
from .summary import ALL_CLASSES, SUMMARY_COLUMNS, summarize, summary_table

CASE_COLUMNS = ("case", "class", *METRIC_NAMES, "surface_tolerance_mm", "list")
# A list and not "everything after the first point": the names of DICOM series and of some scans contain points.
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".h5", ".hdf5", ".npy", ".npz", ".dcm")


class CaseMetrics:
    """Measures every case right after its inference and keeps what was measured, even if the run breaks off.

    Attach it to an evaluator whose ``engine.state.output`` is, after each iteration, a list of dictionaries
    (decollated and postprocessed) with

    - ``"pred"``: MetaTensor (1, H, W, D), integer labels in the geometry of the original image; for a label coding of
      overlapping regions also (C, H, W, D), one 0/1 map per region, since no single label can express them;
    - ``"label"``: MetaTensor (1, H, W, D), integer labels of the reference, see `LabelCoding.mark` for partial ones.
      Its affine gives the spacing.

    What happens when:

    1. engine started: ``metrics.csv`` begins anew and an old ``metrics_summary.csv`` is removed;
    2. iteration completed: one row per case and class is appended to ``metrics.csv``, with the columns ``case, class``,
       those of ``segmentation_metrics``, ``surface_tolerance_mm`` and ``list``. ``case`` is the file name in the
       prediction's ``meta["filename_or_obj"]`` without its suffix, or "image" where there is none; a repeated name
       gets "-2", "-3", ...;
    3. engine completed: ``metrics_summary.csv`` is written (see ``summarize``), logged as a table, and the mean Dice,
       over the classes if there are several, becomes ``engine.state.metrics["test_mean_dice"]``.

    In a run of several processes, each with a share of the cases, the first one writes to ``metrics.csv`` and the
    others to ``metrics_rank<r>.csv`` as they go; at the end the first one has all rows, in the order of the ranks, in
    ``metrics.csv``, and every process the mean Dice of all cases.

    Args:
        label_coding: turns integer labels into classes. ``encode(label)`` takes (B, 1, H, W, D) and returns float
            (B, C, H, W, D), 1 in the foreground of class c and 0 elsewhere, without a background channel; regions
            may overlap. ``num_classes`` is C. If it has ``regions`` other than None, a prediction of C channels is
            taken as the region maps themselves. If it has ``known``, that tells from the label where it is known.
        output_dir: folder of the two CSV files, made if missing.
        class_names: names of the C foreground classes in the order of the channels. Default: "1", "2", ..., "C".
        surface_tolerance: tolerance of the surface Dice, in mm.
        case_list: name of the list that the cases are from, "test" or "validation"; it stands in both tables and the
            log, since figures of validation cases, by which a model was chosen, are no result.

    Raises:
        UserError: if ``class_names`` has another length than C, repeats a name or contains "all", or if
            ``surface_tolerance`` is not a positive number.
    """

    def __init__(
        self,
        label_coding: Any,
        output_dir: str | os.PathLike,
        *,
        class_names: Sequence[str] | None = None,
        surface_tolerance: float = 1.0,
        case_list: str | None = None,
    ) -> None:
        count = int(label_coding.num_classes)
        names = [str(name) for name in class_names] if class_names else [str(i + 1) for i in range(count)]
        if len(names) != count or len(set(names)) != count or ALL_CLASSES in names:
            raise UserError(
                f"class_names must be {count} different names, none of them '{ALL_CLASSES}', got {names}: "
                "name the foreground classes only, one for each channel of label_coding.encode."
            )
        self.label_coding = label_coding
        self.class_names = names
        self.surface_tolerance = checked_tolerance(surface_tolerance)
        self.case_list = case_list
        self.output_dir = Path(output_dir)
        self.rows: list[dict] = []
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """Registers the three steps on ``engine``.

        Args:
            engine: the evaluator that runs the test set.
        """
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def start(self, engine: Engine) -> None:
        """Forgets earlier results and begins ``metrics.csv`` anew.

        Args:
            engine: the engine that starts.
        """
        self.rows = []
        self.path = self.output_dir / (f"metrics_rank{rank()}.csv" if rank() else "metrics.csv")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        # Removing metrics.csv as well keeps a link that somebody left there from being written through.
        for path in (self.path, self.output_dir / "metrics_summary.csv"):
            path.unlink(missing_ok=True)
        _write_csv(self.path, CASE_COLUMNS, [])

    def __call__(self, engine: Engine) -> None:
        """Measures the cases of one iteration and appends them to ``metrics.csv``.

        Args:
            engine: the engine whose ``state.output`` holds the cases.

        Raises:
            TypeError: if the output is not a list of dictionaries with MetaTensors "pred" and "label".
            ValueError: if the prediction and the label of a case differ in shape; the text names the case.
        """
        output = engine.state.output
        if not isinstance(output, list):
            raise TypeError(
                f"engine.state.output must be a list with one dictionary per case, got {type(output).__name__}: "
                "leave decollate=True in the evaluator."
            )
        for item in output:
            rows = self._measure(item)
            self.rows += rows
            # Opened and closed for each case, so that nothing computed is lost when a later case fails.
            _write_csv(self.path, CASE_COLUMNS, rows, append=True)

    def complete(self, engine: Engine) -> None:
        """Writes and logs the summary, and puts the mean Dice into ``engine.state.metrics["test_mean_dice"]``.

        Args:
            engine: the engine that has completed. Without any case its mean Dice is NaN.
        """
        shares = gathered(self.rows)
        self.rows = [row for share in shares for row in share]
        summary = [{**line, "list": self.case_list} for line in summarize(self.rows)]
        # The last class of the summary is "all", or the only class.
        dice = [line["mean"] for line in summary if line["metric"] == "dice"]
        engine.state.metrics["test_mean_dice"] = dice[-1] if dice else float("nan")
        if rank() > 0:
            self.path.unlink()
            return
        if len(shares) > 1:
            _write_csv(self.path, CASE_COLUMNS, self.rows)
        _write_csv(self.output_dir / "metrics_summary.csv", (*SUMMARY_COLUMNS, "list"), summary)
        cases = f"{self._case_count()} {f'{self.case_list} ' if self.case_list else ''}cases"
        self.logger.info("metrics of %s, in %s\n%s", cases, self.output_dir, summary_table(summary))

    def _measure(self, item: Mapping) -> list[dict]:
        """The rows of one case, one per class."""
        pred, label = item.get("pred"), item.get("label")
        if not (isinstance(pred, MetaTensor) and isinstance(label, MetaTensor)):
            raise TypeError(
                "every case in engine.state.output needs MetaTensors 'pred' and 'label', got "
                f"{ {key: type(value).__name__ for key, value in item.items()} }: check the postprocessing."
            )
        case = self._unused(_case_name(pred))
        maps = getattr(self.label_coding, "regions", None) is not None and len(pred) == len(self.class_names)
        if pred.shape[1:] != label.shape[1:] or len(label) != 1 or not (maps or len(pred) == 1):
            raise UserError(
                f"case '{case}': pred and label must have the same shape (1, H, W, D), got {tuple(pred.shape)} and "
                f"{tuple(label.shape)}: invert the preprocessing of the prediction, and do not resample the label."
            )
        spacing = affine_to_spacing(label.affine).tolist()
        prediction, reference = (pred.as_tensor() > 0.5).cpu() if maps else self._encode(pred), self._encode(label)
        known = self._known(label)
        return [
            {
                "case": case,
                "class": name,
                **segmentation_metrics(
                    prediction[i],
                    reference[i],
                    spacing=spacing,
                    tolerance=self.surface_tolerance,
                    known=None if known is None else known[i],
                ),
                "surface_tolerance_mm": self.surface_tolerance,
                "list": self.case_list,
                "empty_prediction": self._missed(prediction[i], reference[i], None if known is None else known[i]),
            }
            for i, name in enumerate(self.class_names)
        ]

    def _encode(self, labels: MetaTensor) -> torch.Tensor:
        """Integer labels (1, H, W, D) as bool masks (C, H, W, D) on the CPU."""
        return (self.label_coding.encode(labels.as_tensor()[None])[0] > 0.5).cpu()

    def _known(self, label: MetaTensor) -> torch.Tensor | None:
        """Where the label is known, bool (C, H, W, D) on the CPU; None for everywhere."""
        known = self.label_coding.known(label.as_tensor()[None]) if hasattr(self.label_coding, "known") else None
        return None if known is None else known[0].cpu()

    @staticmethod
    def _missed(prediction: torch.Tensor, reference: torch.Tensor, known: torch.Tensor | None) -> bool:
        """Whether there is an object and nothing of it was found, as far as that is known."""
        found = prediction if known is None else prediction & known
        return bool(reference.any() and not found.any())

    def _unused(self, name: str) -> str:
        """``name``, numbered if an earlier case has it: data sets exist whose files are all called the same."""
        taken = {row["case"] for row in self.rows}
        unused, number = name, 1
        while unused in taken:
            number += 1
            unused = f"{name}-{number}"
        return unused

    def _case_count(self) -> int:
        return len({row["case"] for row in self.rows})


def _case_name(pred: MetaTensor) -> str:
    """The name of the image file without its suffix, or "image"."""
    source = pred.meta.get("filename_or_obj") or "image"
    if isinstance(source, (list, tuple)):
        source = source[0]
    name = Path(str(source)).name
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] or "image"


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping], *, append: bool = False) -> None:
    """Writes ``rows`` below a header line, or appends them to a file that has one; None becomes a blank cell."""
    with open(path, "a" if append else "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        if not append:
            writer.writeheader()
        writer.writerows(rows)
