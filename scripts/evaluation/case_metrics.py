"""Case metrics: an ignite handler that writes the metrics of every case and class, and their summary, as CSV files."""

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

from scripts.data import case_name
from scripts.errors import UserError
from scripts.ranks import gathered, rank

from .metrics import METRIC_NAMES, checked_tolerance, segmentation_metrics
from .summary import ALL_CLASSES, SUMMARY_COLUMNS, summarize, summary_table

CASE_COLUMNS = ("case", "class", *METRIC_NAMES, "surface_tolerance_mm", "list")


class CaseMetrics:
    """Measures every case right after its inference and keeps what was measured, even if the run breaks off.

    Attach it to an evaluator whose ``engine.state.output`` is, after each iteration, a list of dictionaries
    (decollated and postprocessed) with

    - ``"pred"``: MetaTensor (1, H, W, D), integer labels in the geometry of the original image; for a label coding of
      overlapping regions also (C, H, W, D), one 0/1 map per region, since no single label can express them;
    - ``"label"``: MetaTensor (1, H, W, D), integer labels of the reference, see `LabelCoding.mark` for partial ones.
      Its affine gives the spacing.

    When the engine starts, ``metrics.csv`` begins anew and an old ``metrics_summary.csv`` is removed. After each
    iteration a row per case and class is appended (:data:`CASE_COLUMNS`); ``case`` is the name of the image file
    without its suffix, or "image", and a repeated name gets "-2", "-3", ... In the end ``metrics_summary.csv`` is
    written (see ``summarize``) and logged as a table, and the mean Dice, over the classes if there are several,
    becomes ``engine.state.metrics["test_mean_dice"]``, NaN without any case.

    Of several processes, each with a share of the cases, the first writes: its own rows as it goes, and in the end
    those of all in the order of the ranks. Every process gets the mean Dice of all cases.

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
        UserError: if ``class_names`` has another length than C, repeats a name or contains "all"; if
            ``surface_tolerance`` is not a positive number; for a case whose prediction and label differ in shape.
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
        names = [str(name) for name in class_names or range(1, count + 1)]
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

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def start(self, engine: Engine) -> None:
        """Forgets earlier results and begins ``metrics.csv`` anew."""
        self.rows = []
        if rank() == 0:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            # Removing metrics.csv as well keeps a link that somebody left there from being written through.
            for name in ("metrics.csv", "metrics_summary.csv"):
                (self.output_dir / name).unlink(missing_ok=True)
            self._write("metrics.csv", CASE_COLUMNS, [])

    def __call__(self, engine: Any) -> None:
        """Measures the cases of one iteration and appends them to ``metrics.csv``."""
        for item in engine.state.output:
            rows = self._measure(item)
            self.rows += rows
            if rank() == 0:  # opened and closed for each case, so that nothing computed is lost when a later case fails
                self._write("metrics.csv", CASE_COLUMNS, rows, append=True)

    def complete(self, engine: Engine) -> None:
        """Writes and logs the summary, and hands on the mean Dice."""
        shares = gathered(self.rows)
        self.rows = [row for share in shares for row in share]
        summary = [{**line, "list": self.case_list} for line in summarize(self.rows)]
        # The last class of the summary is "all", or the only class.
        dice = [line["mean"] for line in summary if line["metric"] == "dice"]
        engine.state.metrics["test_mean_dice"] = dice[-1] if dice else float("nan")
        if rank() == 0:
            if len(shares) > 1:
                self._write("metrics.csv", CASE_COLUMNS, self.rows)
            self._write("metrics_summary.csv", (*SUMMARY_COLUMNS, "list"), summary)
            cases = f"{len({row['case'] for row in self.rows})} {f'{self.case_list} ' if self.case_list else ''}cases"
            table = summary_table(summary)
            logging.getLogger(__name__).info("metrics of %s, in %s\n%s", cases, self.output_dir, table)

    def _measure(self, item: Mapping) -> list[dict]:
        """The rows of one case, one per class."""
        pred, label = item["pred"], item["label"]
        source = pred.meta.get("filename_or_obj") or "image"
        case = self._unused(case_name(source[0] if isinstance(source, (list, tuple)) else source))
        maps = getattr(self.label_coding, "regions", None) is not None and len(pred) == len(self.class_names)
        if pred.shape[1:] != label.shape[1:] or len(label) != 1 or not (maps or len(pred) == 1):
            raise UserError(
                f"case '{case}': pred and label must have the same shape (1, H, W, D), got {tuple(pred.shape)} and "
                f"{tuple(label.shape)}: invert the preprocessing of the prediction, and do not resample the label."
            )
        spacing = affine_to_spacing(label.affine).tolist()
        predictions, references = (pred.as_tensor() > 0.5).cpu() if maps else self._encode(pred), self._encode(label)
        known = self.label_coding.known(label.as_tensor()[None]) if hasattr(self.label_coding, "known") else None
        everywhere = torch.ones_like(references) if known is None else known[0].cpu()
        return [
            {
                "case": case,
                "class": name,
                **segmentation_metrics(p, r, spacing=spacing, tolerance=self.surface_tolerance, known=k),
                "surface_tolerance_mm": self.surface_tolerance,
                "list": self.case_list,
                # There is an object and nothing of it was found, as far as that is known.
                "empty_prediction": bool(r.any() and not (p & k).any()),
            }
            for name, p, r, k in zip(self.class_names, predictions, references, everywhere)
        ]

    def _encode(self, labels: MetaTensor) -> torch.Tensor:
        """Integer labels (1, H, W, D) as bool masks (C, H, W, D) on the CPU."""
        return (self.label_coding.encode(labels.as_tensor()[None])[0] > 0.5).cpu()

    def _unused(self, name: str) -> str:
        """``name``, numbered if an earlier case has it: data sets exist whose files are all called the same."""
        taken = {row["case"] for row in self.rows}
        unused, number = name, 1
        while unused in taken:
            number += 1
            unused = f"{name}-{number}"
        return unused

    def _write(self, name: str, columns: Sequence[str], rows: Sequence[Mapping], *, append: bool = False) -> None:
        """Writes ``rows`` below a header line, or appends them to a file that has one; None becomes a blank cell."""
        with open(self.output_dir / name, "a" if append else "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            if not append:
                writer.writeheader()
            writer.writerows(rows)
