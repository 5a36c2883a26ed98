"""Checkpoints: writes weights, completely or not at all, at the end of a run and at its best validation."""

import contextlib
import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from scripts.files import replacing

from .overlay import InferenceOverlay

logger = logging.getLogger(__name__)

# The end of a zip archive without a comment: its length. Behind that of a SHA-256 in hexadecimal follows the SHA-256.
NO_COMMENT, LENGTH = (0).to_bytes(2, "little"), (64).to_bytes(2, "little")


def save_atomically(content: Any, path: Path, *, checksum: bool = False) -> None:
    """``torch.save`` to ``path`` with :func:`~scripts.files.replacing`, flushed to the disk.

    Whenever the process or the machine stops, ``path`` is the old file or the new one, never a part of it.

    Args:
        content: what ``torch.save`` takes.
        path: its folder is made if missing.
        checksum: makes the SHA-256 of the file the comment of the zip archive that ``torch.save`` writes, which readers
            of such files ignore; see :func:`load_if_whole`.

    Raises:
        OSError: when it cannot be written, such as on a full disk; ``path`` is then as it was.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb+") as file:
            torch.save(content, file)
            if checksum:
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(-len(NO_COMMENT), os.SEEK_END)
                file.write(LENGTH + digest.encode())
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch reports a failed write this way
        raise OSError(f"{path} could not be written: {error}") from error
    flush_folder(path.parent)


def load_if_whole(path: Path) -> Any:
    """``torch.load`` of a file that :func:`save_atomically` wrote with its checksum; None if the checksum differs."""
    content = path.read_bytes()
    digest = hashlib.sha256(memoryview(content)[:-66])
    digest.update(NO_COMMENT)
    if content[-66:] != LENGTH + digest.hexdigest().encode():
        return None
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def flush_folder(folder: Path) -> None:
    """Flushes a folder's names to the disk, so that a power cut cannot undo a renaming; if the system supports it."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some network file systems do not flush them
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


class FinalWeights:
    """Writes the network's state dict at the end of a complete run; a failed run leaves no weights.

    A new run that will replace the weights of another says so when it starts.

    Args:
        path: the file, such as ``<ckpt_dir>/model.pt``.
        network: whose weights are written.
        overlay: written beside them under the same name, ``model.json``; never without them, so that weights of a
            former run keep the settings they were trained with until they are replaced.
    """

    def __init__(self, path: str | Path, network: nn.Module, overlay: InferenceOverlay | None = None) -> None:
        self.path = Path(path)
        self.network = network
        self.overlay = overlay

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._announce)
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _announce(self, engine: Engine) -> None:
        if engine.state.iteration == 0 and self.path.exists():
            logger.warning(
                "%s holds weights of another training, which this one replaces when it ends; to keep them, stop and "
                "give another --ckpt_dir",
                self.path,
            )

    def _save(self, engine: Engine) -> None:
        save_atomically(self.network.state_dict(), self.path)
        if self.overlay is not None:
            self.overlay.write(self.path.with_suffix(".json"))


class BestWeights(FinalWeights):
    """Writes the network's state dict after every validation with the best key metric so far.

    Attach it to a MONAI evaluator, which keeps ``state.best_metric`` and the epoch that it comes from.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_if_best)

    def _save_if_best(self, engine: Any) -> None:
        if engine.state.best_metric_epoch == engine.state.epoch:
            self._save(engine)
