"""Follower: a handler that finds what is new in a run's files, and leaves what to do with it to its subclasses."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from scripts.training import RunEvents

logger = logging.getLogger(__name__)


class GrowingTable:
    """The rows of a CSV file that were not there when it was last looked at; they are appended and never changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self.columns: Sequence[str] | None = None

    def new_rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self.position)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]  # a full disk cuts a row off
        self.position += len(content)
        reader = csv.DictReader(io.StringIO(content.decode("utf-8")), self.columns)
        rows = list(reader)
        self.columns = reader.fieldnames
        return rows


def numbers(row: dict[str, str], group: str) -> dict[str, float]:
    """The columns of a row that have a value, as ``<group>/<column>``."""
    return {
        f"{group}/{name}": float(value) for name, value in row.items() if value and name not in ("iteration", "epoch")
    }


class Follower:
    """Watches ``training_log.csv``, ``validation_log.csv`` and ``pictures/`` of a run.

    The logs are what is passed on, so that nothing is lost while a server is away, and a continued run can pass on what
    came before. Stand behind the handlers that write them.

    Args:
        output_dir: of the run.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._look)
        engine.add_event_handler(RunEvents.ENDED, self._end)

    def begin(self, engine: Any) -> None:
        """The run starts, or continues behind ``engine.state.iteration``."""
        raise NotImplementedError

    def values(self, values: dict[str, float], iteration: int) -> None:
        """A row of a log: ``train/<column>`` or ``validation/<column>``."""
        raise NotImplementedError

    def picture(self, path: Path, iteration: int) -> None:
        """A picture that was drawn."""
        raise NotImplementedError

    def end(self, engine: Any) -> None:
        """The run is left, see :class:`~scripts.training.RunEvents`."""
        raise NotImplementedError

    def _start(self, engine: Any) -> None:
        self.failed = False
        self._safely(self._begin, engine)

    def _begin(self, engine: Any) -> None:
        names = {"train": "training_log.csv", "validation": "validation_log.csv"}
        self.tables = {group: GrowingTable(self.output_dir / name) for group, name in names.items()}
        self.pictures: set[Path] = set()
        self.begin(engine)
        self._pass_on()

    def _look(self, engine: Any) -> None:
        self._safely(self._pass_on)

    def _end(self, engine: Any) -> None:
        if hasattr(self, "failed"):  # a handler that starts before this one may have failed
            self._look(engine)
            self._safely(self.end, engine)

    def _safely(self, action: Callable[..., None], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            action(*arguments)
        except Exception:  # no record is worth a training
            self.failed = True
            logger.warning("the run is not tracked any further; training goes on.", exc_info=True)

    def _pass_on(self) -> None:
        for group, table in self.tables.items():
            for row in table.new_rows():
                self.values(numbers(row, group), int(row["iteration"]))
        found = set((self.output_dir / "pictures").glob("iteration_*.png"))
        for path in sorted(found - self.pictures):
            self.picture(path, int(path.stem.split("_")[1]))
        self.pictures = found
