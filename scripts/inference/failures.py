"""Failures: a case that cannot be read, segmented or written is reported, and the others go on."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor, list_data_collate
from torch.utils.data import Dataset

from scripts.allocation import keep_freed_memory
from scripts.data import DataError, images_of
from scripts.data.checks import header_problems
from scripts.data.nifti import open_nifti
from scripts.data.problems import FileError
from scripts.errors import chain
from scripts.precision import Evaluator

from .outcomes import Outcomes
from .outputs import facts_of
from .predictor import HeadsError
from .shares import place_of_process, totals

FAILURE = "failure"
SOME_FAILED = 2  # exit status
# An image is flat if a voxel is so many standard deviations off that few can be, and all but this part of the voxels
# lie within this part of a standard deviation of each other.
FAR, FEW, FLATTENED = 50, 1e-3, 0.01
# Hippocampi, the same weights: Dice 0.82 with the window of the training, 0.34 with one that is mostly padding.
LEAST_FILLED = 0.5


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


def check_image(
    image: torch.Tensor, path: Any, *, in_channels: int | None = None, window: Sequence[int] | None = None
) -> None:
    """Raises for a preprocessed image (C, H, W, D) of which no network can make a sensible mask.

    A warning names an image that fills less than half of the sliding window: the rest is padded with zeros, so the
    network's normalisation gets statistics that it never saw in training.

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
    for number, channel in enumerate(image):
        which = f" in channel {number} (from 0)" if len(image) > 1 else ""
        if channel.min() == channel.max():
            raise DataError(
                f"{path} is the same in every voxel{which}, or everywhere outside intensity_window: "
                "export it again, or check that it is the modality that the network was trained on."
            )
        if _is_flattened(channel):
            raise DataError(
                f"{path} has a few voxels{which} so far off that, scaled to unit variance, all else is flat: replace "
                "them, or clip them with intensity_window."
            )

    filled = 1.0 if window is None else math.prod(min(1, n / w) for n, w in zip(image.shape[1:], window))
    if filled < LEAST_FILLED:
        logging.getLogger(__name__).warning(
            "%s fills %.0f %% of the window, patch_size %s. The rest is padding, which can spoil the mask: use the "
            "patch_size of the training. If all images are small, train with a smaller one.",
            path,
            100 * filled,
            list(window or ()),
        )


def _is_flattened(channel: torch.Tensor) -> bool:
    """Whether single voxels have made all others of a channel (H, W, D) practically equal."""
    values = channel.as_tensor().flatten() if isinstance(channel, MetaTensor) else channel.flatten()
    spread, mean = torch.std_mean(values)
    if max(values.max() - mean, mean - values.min()) < FAR * spread:
        return False
    few = max(1, int(FEW * values.numel()))
    most = torch.kthvalue(values, values.numel() - few + 1).values - torch.kthvalue(values, few).values
    return bool(most < FLATTENED * spread)


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
        window: extent of the sliding window in voxels; a warning names an image that fills less than half of it.
        digests: whether the image's meta gets "files", as JSON, see :func:`~scripts.inference.outputs.facts_of`.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        in_channels: int | None = None,
        check: Callable[[list], Any] | None = None,
        window: Sequence[int] | None = None,
        digests: bool = False,
    ) -> None:
        self.dataset = dataset
        self.window = window
        self.in_channels = in_channels
        self.check = check
        self.digests = digests

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
            files = [facts_of(file) for file in images_of(case)] if self.digests else None  # of what is read now
            item = self.dataset[index]
            check_image(item["image"], path, in_channels=self.in_channels, window=self.window)
            if files is not None:
                item["image"].meta["files"] = json.dumps(files)
            return item
        except Exception as error:  # whatever a reader or transform raises concerns this case alone
            return {FAILURE: innermost(error), "image": path}


def case_or_failure(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collates the single item of a batch; a failure is passed on as it is."""
    return items[0] if FAILURE in items[0] else list_data_collate(items)


class CaseLoader(DataLoader):
    """The cases of a :class:`TolerantDataset`, one by one.

    Args:
        dataset: see there.
        ahead: whether a thread reads the next case while this one is segmented, which takes the memory of one more and
            can save time only where the network runs on another device than the processor.
        num_workers: processes that read.
    """

    def __init__(self, dataset: Dataset, *, ahead: bool = False, num_workers: int = 0) -> None:
        super().__init__(dataset, batch_size=1, num_workers=num_workers, collate_fn=case_or_failure)
        self.ahead = ahead

    def __iter__(self) -> Any:
        cases = super().__iter__()
        if not self.ahead:
            yield from cases
            return
        with ThreadPoolExecutor(1) as thread:
            upcoming = thread.submit(next, cases, None)
            while (case := upcoming.result()) is not None:
                upcoming = thread.submit(next, cases, None)
                yield case


class TolerantEvaluator(Evaluator):
    """MONAI's evaluator for batches of one case, which survives the failure of a case.

    When all cases have been tried and some have failed, the run ends with :class:`SomeCasesFailedError`, or if all have
    with its base class :class:`~scripts.data.DataError`, so that the exit status says so. Of several processes that
    torchrun started, the first waits for all and says how all cases ended; the others just return.

    Args:
        outcomes: is told what became of each case, and makes the tables.
        kwargs: as in :class:`~scripts.precision.Evaluator`.
    """

    def __init__(self, *, outcomes: Outcomes, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.outcomes = outcomes
        self.failures = 0
        outcomes.attach(self)
        self.add_event_handler(Events.GET_BATCH_STARTED, self._forget_previous_case)

    def run(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Goes through all cases; none may be left, because an earlier run has finished them."""
        self.failures, share = 0, f"share {self.outcomes.given}: " if self.outcomes.given else ""
        with self.outcomes.recording():
            if self.state.epoch_length:
                if self.state.device.type == "cpu":
                    keep_freed_memory()
                super().run(*args, **kwargs)
        failed, tried = totals(self.failures, self.state.iteration)
        if place_of_process()[0]:  # the first speaks for all, and its status is theirs
            return
        masks = f"{tried - failed} mask{'' if tried - failed == 1 else 's'} in {self.outcomes.folder}"
        text, reasons = f"{share}{failed} of {tried} cases failed", f"The reasons are in {self.outcomes.failures}"
        if 0 < failed < tried:
            raise SomeCasesFailedError(f"{text}; the others are complete. {reasons}. {masks}.")
        if failed:
            raise DataError(f"{text}. {reasons}.")
        logging.getLogger(__name__).info("%s%s", share, masks)

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        if FAILURE in batchdata:
            return self._failed(batchdata["image"], batchdata[FAILURE])
        try:
            return super()._iteration(engine, batchdata)
        except (torch.cuda.OutOfMemoryError, MemoryError, HeadsError):
            raise
        except Exception as error:  # an unreadable or unwritable case must not cost the others
            return self._failed(batchdata["image"].meta["filename_or_obj"][0], innermost(error))

    def _failed(self, image: str, reason: str) -> list[Any]:
        """The output of a case that has none."""
        self.failures += 1
        self.outcomes.failed(image, reason)
        logging.getLogger(__name__).error("%s failed: %s", image, reason)
        return []

    def _forget_previous_case(self, engine: Engine) -> None:
        # Else its image and maps would stay in memory while the next is read and segmented.
        engine.state.batch = engine.state.output = None


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
