"""Validation log: writes what every validation of a run found."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from .handlers import rows_until


class ValidationLog:
    """Writes ``<output_dir>/validation_log.csv``: iteration, epoch and every metric of the validation's engine.

    Attach it to the trainer, behind the handler that validates.

    Args:
        output_dir: created if need be.
        evaluator: the validation's engine.
    """

    def __init__(self, output_dir: str | Path, evaluator: Any) -> None:
        self.path = Path(output_dir) / "validation_log.csv"
        self.evaluator = evaluator
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
        self.rows.append({"iteration": engine.state.iteration, "epoch": engine.state.epoch, **metrics})
        self._write_rows()

    def _write_rows(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[-1]))
            writer.writeheader()
            writer.writerows(self.rows)
