"""Tolerant: a case that cannot be read, segmented or written is reported, and the others go on."""

from __future__ import annotations

import csv
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import list_data_collate
from monai.engines import SupervisedEvaluator
from torch.utils.data import Dataset

from scripts.allocation import keep_freed_memory
from scripts.data import DataError, images_of
from scripts.data.checks import header_problems
from scripts.data.nifti import open_nifti
from scripts.data.problems import FileError
from scripts.errors import chain
from scripts.lock import held
from scripts.ranks import gathered, rank

from .outputs import MASKS

FAILURE = "failure"
COLUMNS = ("case", "reason")


class SomeCasesFailedError(DataError):
    """Some cases failed, and the others are complete."""


def innermost(error: BaseException) -> str:
    """What the user can act on: our own error in a chain if there is one, else the one that started it."""
    causes = list(chain(error))
    error = next((cause for cause in causes if isinstance(cause, DataError)), causes[-1])
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if "Traceback (most recent call last)" in text:  # MONAI's writer puts the whole of it into its own message
        text = str(error).strip().splitlines()[-1]
    return f"{text}: shorten the name of the input" if os.strerror(errno.ENAMETOOLONG) in text else text


def check_image(image: torch.Tensor, path: Any, *, in_channels: int | None = None) -> None:
    """Raises for a preprocessed image (C, H, W, D) of which no network can make a sensible mask.

    Raises:
        DataError: when it does not have ``in_channels`` channels, is NaN or infinite somewhere or one value everywhere.
    """
    if in_channels is not None and image.shape[0] != in_channels:
        raise DataError(
            f"{path} has {image.shape[0]} channel(s) and the network takes {in_channels}: "
            "save the volume that it was trained on as a file of its own."
        )
    if not torch.isfinite(image).all():
        raise DataError(
            f"{path} has voxels that are NaN or infinite: replace them, for example by the value of the background."
        )
    if image.min() == image.max():
        raise DataError(
            f"{path} is the same in every voxel, or everywhere outside intensity_window: "
            "export it again, or check that it is the modality that the network was trained on."
        )


def warn_of_header(path: str) -> None:
    """Logs what the preflight would say about the header of an image: its units, voxel size, two places at once."""
    try:
        header, _ = open_nifti(path)
    except FileError:  # the reader reports it
        return
    for problem in header_problems(header):
        logging.getLogger(__name__).warning("%s", problem)


class TolerantDataset(Dataset):
    """Items of ``dataset``, or ``{"failure": reason, "image": path}`` where making one raises.

    Args:
        dataset: a MONAI dataset of dictionaries with an "image".
        in_channels: channels that an image must have; None for any number.
        check: called with a list of the one case before it is read, and raises if its files cannot be used.
    """

    def __init__(
        self, dataset: Any, *, in_channels: int | None = None, check: Callable[[list], Any] | None = None
    ) -> None:
        self.dataset = dataset
        self.in_channels = in_channels
        self.check = check

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.dataset.data[index]
        path = images_of(case)[0]  # of several channels the first, after which the mask is called
        try:
            if self.check is not None:
                self.check([case])
            for file in images_of(case):
                warn_of_header(file)
            item = self.dataset[index]
            check_image(item["image"], path, in_channels=self.in_channels)
            return item
        except Exception as error:  # whatever a reader or transform raises concerns this case alone
            return {FAILURE: innermost(error), "image": path}


def case_or_failure(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collates the single item of a batch; a failure is passed on as it is."""
    return items[0] if FAILURE in items[0] else list_data_collate(items)


class TolerantEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for batches of one case, which survives the failure of a case.

    Failed cases are appended to ``<output_dir>/failures.csv`` (columns ``case,reason``). When all cases have been
    tried and some have failed, the run ends with :class:`SomeCasesFailedError`, or if all have with its base class
    :class:`~scripts.data.DataError`, so that the exit status says so.
    Of several processes with a share of the cases each, the others write to ``failures_rank<r>.csv`` until the end.

    Args:
        output_dir: folder of failures.csv; an old one is removed at the start.
        kwargs: as in ``monai.engines.SupervisedEvaluator``.
    """

    def __init__(self, *, output_dir: str | Path, **kwargs: Any) -> None:
        self.failures_path = Path(output_dir) / (f"failures_rank{rank()}.csv" if rank() else "failures.csv")
        self.failures: list[tuple[Any, str]] = []
        super().__init__(**kwargs)
        # After the handlers that the base class attaches, so that they conclude before this ends the run with an error.
        self.add_event_handler(Events.STARTED, self._forget_failures)
        self.add_event_handler(Events.GET_BATCH_STARTED, self._forget_previous_case)
        self.add_event_handler(Events.COMPLETED, self._conclude)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Go through all cases; without any, because an earlier run has finished them, do nothing."""
        with held(self.failures_path.parent, purpose=MASKS):
            if not self.state.epoch_length:
                return None
            if self.state.device.type == "cpu":
                keep_freed_memory()
            return super().run(*args, **kwargs)

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        if FAILURE in batchdata:
            self._report(batchdata["image"], batchdata[FAILURE])
            return []
        try:
            return super()._iteration(engine, batchdata)
        except (torch.cuda.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # an unreadable or unwritable case must not cost the others
            self._report(batchdata["image"].meta["filename_or_obj"][0], innermost(error))
            return []

    def _report(self, image: Any, reason: str) -> None:
        self.failures.append((image, reason))
        self._append([(image, reason)])
        logging.getLogger(__name__).error("%s failed: %s", image, reason)

    def _append(self, failures: list[tuple[Any, str]]) -> None:
        self.failures_path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.failures_path.exists()
        with self.failures_path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerows(failures)

    def _forget_previous_case(self, engine: Engine) -> None:
        # Else its image and maps would stay in memory while the next is read and segmented.
        engine.state.batch = engine.state.output = None

    def _forget_failures(self, engine: Engine) -> None:
        self.failures = []
        self.failures_path.unlink(missing_ok=True)

    def _conclude(self, engine: Engine) -> None:
        shares = gathered((self.failures, engine.state.iteration))
        of_others = [failure for failures, _ in shares[1:] for failure in failures]
        if rank() > 0:
            self.failures_path.unlink(missing_ok=True)
        elif of_others:
            self._append(of_others)
        total = sum(cases for _, cases in shares)
        if count := len(shares[0][0]) + len(of_others):
            kind, others = (SomeCasesFailedError, "; the others are complete") if count < total else (DataError, "")
            raise kind(
                f"{count} of {total} cases failed{others}. "
                f"The reasons are in {self.failures_path.with_name('failures.csv')}."
            )
        if rank() == 0:
            written = f"{total} mask{'' if total == 1 else 's'} in {self.failures_path.parent}"
            logging.getLogger(__name__).info("%s", written)
