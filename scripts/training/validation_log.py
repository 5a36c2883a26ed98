"""Validation log: writes the metrics of every validation of a run."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.files import replacing

from .handlers import rows_until


class ValidationLog:
    """Writes ``<output_dir>/validation_log.csv``: iteration, epoch and every metric of the validation's engine.

    Of several classes the metric of each follows, as ``<metric>_<class>``: the mean over the cases that have it. Attach
    it to the trainer, behind the handler that validates.

    Args:
        output_dir: created if need be.
        evaluator: the validation's engine.
        class_names: of the channels; None to number them from 1.
    """

    def __init__(self, output_dir: str | Path, evaluator: Any, class_names: Sequence[str] | None = None) -> None:
        self.path = Path(output_dir) / "validation_log.csv"
        self.evaluator = evaluator
        self.class_names = class_names
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self.rows = list(rows_until(self.path, engine.state.iteration))
        self.path.unlink(missing_ok=True)
        if self.rows:
            self._write_rows()

    def _write(self, engine: Engine) -> None:
        validated = self.evaluator.state
        if validated.epoch != engine.state.epoch or not validated.metrics:
            return
        metrics = {name: float(value) for name, value in validated.metrics.items()}
        for name in validated.metrics:
            metrics.update(self._of_classes(name, validated.metric_details.get(name)))
        self.rows.append({"iteration": engine.state.iteration, "epoch": engine.state.epoch, **metrics})
        self._write_rows()

    def _of_classes(self, name: str, details: torch.Tensor | None) -> dict[str, float]:
        """The means of a metric's ``details`` (cases, classes) by class; empty if there is only one class."""
        if details is None or details.ndim != 2 or details.shape[1] == 1:
            return {}
        names = self.class_names or [f"class_{number}" for number in range(1, details.shape[1] + 1)]
        return {f"{name}_{of}": value.item() for of, value in zip(names, details.nanmean(0))}

    def _write_rows(self) -> None:
        # A continued run may have had other names of classes.
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
