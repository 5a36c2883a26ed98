"""Case log: a line for every case that is segmented, and an exit status that says how a run over a folder ended."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ignite.engine import Engine, Events

from scripts.data import LabelCoding
from scripts.data.colours import write_colour_table
from scripts.errors import chain

from .outputs import name_of, output_path
from .tolerant import SomeCasesFailedError
from .volumes import checked_names, class_volumes

SOME_FAILED = 2


class CaseLog:
    """Logs of every case its name, the seconds it took with reading and writing, the volumes of its classes, its mask.

    Attach it to the evaluator. Names and colours of the label values go to ``<output_dir>/classes.ctbl``, for viewers.

    Args:
        label_coding, class_names: as in :class:`~scripts.inference.SaveVolumesd`.
        label_values: see :class:`~scripts.inference.OriginalValuesd`.
        output_dir, root: see :func:`~scripts.inference.outputs.output_path`.
    """

    def __init__(
        self,
        label_coding: LabelCoding,
        output_dir: str | Path,
        *,
        class_names: Sequence[str] | None = None,
        label_values: Sequence[int] | None = None,
        root: str | Path = "",
    ) -> None:
        self.label_coding = label_coding
        self.class_names = checked_names(class_names, label_coding)
        self.label_values = label_values
        self.output_dir = output_dir
        self.root = root

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._write_colours)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._log)

    def _write_colours(self, engine: Engine) -> None:
        if self.label_coding.regions is None:  # overlapping regions are channels of 0 and 1
            write_colour_table(Path(self.output_dir) / "classes.ctbl", self.class_names, self.label_values)

    def _start(self, engine: Engine) -> None:
        self.started = time.monotonic()

    def _log(self, engine: Any) -> None:
        for item in engine.state.output:
            image = item["pred"].meta["filename_or_obj"]
            volumes = zip(self.class_names, class_volumes(item["pred"], self.label_coding))
            logging.getLogger(__name__).info(
                "%s: %.1f s; %s; %s",
                name_of(image, self.root),
                time.monotonic() - self.started,
                ", ".join(f"{name} {millilitres:.4g} ml" for name, (_, millilitres) in volumes),
                output_path(image, "seg", output_dir=self.output_dir, root=self.root),
            )


def exit_with_status() -> None:
    """Makes a process that ends with :class:`SomeCasesFailedError` end with status 2, where other errors have 1.

    Behind ``scripts.errors.print_briefly`` in a run list; who calls the evaluator gets the error as it is.
    """
    former = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        former(kind, error, trace)
        if any(isinstance(cause, SomeCasesFailedError) for cause in chain(error)):
            raise SystemExit(SOME_FAILED)

    sys.excepthook = hook
