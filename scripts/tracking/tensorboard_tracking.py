"""TensorBoard: the logs and pictures of a run as its event files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from scripts.training.description import running_config

from .follower import Follower


class TensorBoardTracking(Follower):
    """Writes ``<output_dir>/tensorboard``: every column of the logs, the pictures, and the merged config as text.

    A run that is continued writes on where it goes on; TensorBoard leaves out what was written behind that iteration.

    Args:
        output_dir: of the run.

    Raises:
        ValueError: when the package ``tensorboard`` is not installed.
    """

    def __init__(self, output_dir: str | Path) -> None:
        super().__init__(output_dir)
        if importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "tensorboard is true and the package tensorboard is not installed: pip install tensorboard, or leave "
                "it out; training_log.csv has the same figures."
            )
        self.config = running_config()

    def begin(self, engine: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.output_dir / "tensorboard"
        iteration = engine.state.iteration
        if iteration == 0 and folder.is_dir():  # of a former run
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
        # What is known already is written only if it was not tracked then.
        self.written = iteration if folder.is_dir() else 0
        self.writer = SummaryWriter(folder, purge_step=iteration + 1 if self.written else None)
        self.writer.add_text("config", f"```json\n{json.dumps(self.config, indent=4, default=str)}\n```")

    def values(self, values: dict[str, float], iteration: int) -> None:
        for name, value in values.items() if iteration > self.written else ():
            self.writer.add_scalar(name, value, iteration)

    def picture(self, path: Path, iteration: int) -> None:
        from matplotlib.image import imread

        if iteration > self.written:
            self.writer.add_image("pictures", imread(path), iteration, dataformats="HWC")

    def end(self, engine: Any) -> None:
        self.writer.close()
