"""Page: a handler that writes the curves and the HTML page of a run when it is complete."""

from __future__ import annotations

import logging
from pathlib import Path

from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)


class RunPage:
    """Writes ``<output_dir>/curves.png`` and ``run.html`` at the end, see :mod:`scripts.training.report`.

    Stand behind the handlers that write logs and pictures.

    Args:
        output_dir: of the run.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        try:
            # Matplotlib takes a second to import, which runs without the page are spared.
            from .report import write_page

            write_page(self.output_dir)
        except Exception:  # the weights are there, and the page can be written later
            logger.warning("no page of the run: python -m scripts.training.report writes it.", exc_info=True)
