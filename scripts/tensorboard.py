"""TensorBoard: writes what a run's folder holds for TensorBoard, while the training goes on."""

import importlib.util
from pathlib import Path
from typing import Any

from .errors import UserError
from .tracking import LOGS, RunFollower, logged, pictures


class TensorBoardTracking(RunFollower):
    """Writes ``<output_dir>/tensorboard``: every column of the logs, the pictures, and the merged config as text.

    Args:
        output_dir: of the run.

    Raises:
        UserError: when the package ``tensorboard`` is not installed.
    """

    def __init__(self, output_dir: str | Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError(
                "tensorboard is true and the package tensorboard is not installed: pip install tensorboard, or leave "
                "it out; training_log.csv has the same figures."
            )
        super().__init__(output_dir, name="TensorBoard")

    def _start(self, engine: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.output_dir / "tensorboard"
        # The logs have all iterations of a run that is continued, which are therefore written again.
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
        self.written = dict.fromkeys((*LOGS, "pictures"), 0)
        self.writer = SummaryWriter(folder)
        if (config := self.output_dir / "config.json").is_file():
            self.writer.add_text("config", f"```json\n{config.read_text(encoding='utf-8')}\n```")
        super()._start(engine)

    def send(self, status: str | None) -> None:
        from matplotlib.image import imread

        for group in LOGS:
            for iteration, milliseconds, values in logged(self.output_dir, group):
                for name, value in values.items() if iteration > self.written[group] else ():
                    self.writer.add_scalar(name, value, iteration, walltime=milliseconds / 1000)
                self.written[group] = max(iteration, self.written[group])
        for path in pictures(self.output_dir):
            iteration = int(path.stem.split("_")[1])
            if iteration > self.written["pictures"]:
                self.writer.add_image("pictures", imread(path), iteration, dataformats="HWC")
                self.written["pictures"] = iteration
        self.writer.flush() if status is None else self.writer.close()
