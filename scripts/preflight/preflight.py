"""Preflight: reads all files of a data set in parallel, judges them, and ends a run that would fail or mislead."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from scripts.data import DataError, Datalist, LabelCoding, Problem
from scripts.data.checks import case_problems, files_of
from scripts.data.contents import File, Finding, inspect, inspect_once
from scripts.data.machine import free_memory, processors, total_memory
from scripts.errors import summary

from .grid import Grid
from .machine import disk_problems, memory_problems
from .report import SHOWN, Report
from .whole_dataset import WholeDataset

# A process is started for this many files; for fewer its start would take longer than they do.
FILES_PER_PROCESS = 24
# Files that a process gets at once.
CHUNK = 4


@dataclasses.dataclass(kw_only=True)
class Preflight:
    """Checks of the cases that a training uses and of the machine that it runs on; docs/preflight.md lists them.

    Every file is read once, and what was found is remembered in this process: the data sets of the training that
    follows do not read it again for their own checks. Label files of unlabeled cases are never opened.

    What the arguments leave as None is not known and therefore not checked, so that a data set can be looked at before
    there are settings for it.

    Args:
        dataset_dir: folder of dataset.json.
        output_dir: gets preflight.json and preflight.txt.
        splits: see :class:`~scripts.data.Datalist`.
        num_labeled: the first cases of the training list that are labeled; None for all of them that have a label.
        unlabeled_batch_size: 0 leaves the unlabeled cases unread, as the training does.
        in_channels: channels that the network takes.
        label_coding: defines the label values that may occur.
        patch_size: in voxels.
        network: that is trained on such patches.
        spacing: mm, to which the volumes are resampled.
        augmentation: random transforms of whole volumes, of which quarter turns are judged by the voxel size, and
            mirror images by whether classes differ only by their side.
        intensity_window: to which intensities are clipped, so that single voxels cannot flatten an image.
        cache_rate: share of the training's volumes that lie in memory; the others take disk.
        workers: processes that read; None for one per core, fewer for few files.
        start_method: of the processes, as in ``multiprocessing.get_context``; None for the system's own.

    Example:
        >>> Preflight(dataset_dir="data", output_dir="outputs", num_labeled=4).run()  # doctest: +SKIP
    """

    dataset_dir: str | Path
    output_dir: str | Path
    splits: Mapping[str, Sequence[int]] | None = None
    num_labeled: int | None = None
    unlabeled_batch_size: int = 1
    in_channels: int | None = None
    label_coding: LabelCoding | None = None
    patch_size: Sequence[int] | None = None
    network: torch.nn.Module | None = None
    spacing: Sequence[float] | None = None
    augmentation: Sequence[Any] | None = None
    intensity_window: Sequence[float] | None = None
    cache_rate: float = 1.0
    workers: int | None = None
    start_method: str | None = None

    def __post_init__(self) -> None:
        datalist = Datalist(self.dataset_dir, splits=self.splits)
        if self.num_labeled is None:  # it is not known what a training would draw from
            self.unlabeled_batch_size = 0
            labeled = [case for case in datalist.training if "label" in case]
            unlabeled = [{"image": case["image"]} for case in datalist.training if "label" not in case]
            unlabeled += datalist.unlabeled(len(datalist.training))
        else:
            labeled = datalist.labeled(self.num_labeled)
            unlabeled = datalist.unlabeled(self.num_labeled) if self.unlabeled_batch_size else []
        self.lists: dict[str, list[dict[str, Any]]] = {
            "labeled": labeled,
            "unlabeled": unlabeled,
            "validation": datalist.validation,
            "test": datalist.test,
        }
        if not any(self.lists.values()):
            raise DataError(f"{datalist.path} lists no case: add some to 'training' (docs/data.md says how).")

    def report(self, *, test_stops: bool = True) -> Report:
        """Reads and judges everything.

        Args:
            test_stops: False makes errors of the test cases' files warnings, for a training, which does not use them.
        """
        cases = [(name, case) for name, cases in self.lists.items() for case in cases]
        files = [file for name, case in cases for file in files_of(case, with_label=name != "unlabeled")]
        found = inspect_once(files, inspect_all=self._inspect_all)
        problems: dict[Problem, None] = {}  # ordered, and a file that is used twice is reported once
        for name, case in cases:
            for problem in case_problems(
                case, found, self.in_channels, self.label_coding, with_label=name != "unlabeled"
            ):
                # The Decathlon's test cases come without labels, and masks can be made of them.
                if name == "test" and (problem.check == "label" or not test_stops):
                    problem = dataclasses.replace(problem, level="warning")
                problems.setdefault(problem)
        data = WholeDataset(
            self.lists, found, self.label_coding, self.augmentation, self.intensity_window, self.unlabeled_batch_size
        )
        grid = Grid(data, self.spacing, self.patch_size, self.cache_rate)
        problems.update(dict.fromkeys([*self._network_problems(), *data.problems(), *grid.problems()]))
        memory, streamed = grid.cache_bytes()
        free = free_memory()
        overview = {
            **grid.overview(),
            "cache (GB)": round(memory / 1e9, 3),
            "free memory (GB)": "unknown" if free is None else round(free / 1e9, 3),
        }
        machine = [
            *memory_problems(memory, free=free, total=total_memory()),
            *disk_problems(self.output_dir, needed=streamed + grid.mask_bytes()),
        ]
        return Report(overview=overview, problems=[*problems, *machine])

    def run(self, *, test_stops: bool = True) -> Report:
        """Prints the report, writes it to ``output_dir``, and raises if there is an error in it.

        Args:
            test_stops: see :meth:`report`.

        Raises:
            DataError: when an error was found, or when the report cannot be written.
        """
        report = self.report(test_stops=test_stops)
        print(report.text(shown=SHOWN), flush=True)
        path = report.write(self.output_dir)
        if report.errors:
            count = len(report.errors)
            raise DataError(
                f"the preflight found {count} error{'s' if count > 1 else ''}, all listed in {path}; "
                f"the first: {report.errors[0]}"
            )
        return report

    def _network_problems(self) -> Iterator[Problem]:
        """A patch that the network cannot take, which is tried without computing anything."""
        if self.network is None or self.patch_size is None or self.in_channels is None:
            return
        patch = torch.empty(1, self.in_channels, *self.patch_size, device="meta")
        try:
            copy.deepcopy(self.network).to("meta").eval()(patch)
        except (RuntimeError, ValueError) as error:
            what = f"is {list(self.patch_size)}, which the network does not take ({summary(error)})"
            yield Problem("patch", "patch_size", what, "choose multiples of 16")

    def _inspect_all(self, files: list[File]) -> list[Finding]:
        workers = self.workers
        if workers is None:
            workers = min(processors(), len(files) // FILES_PER_PROCESS)
        if workers <= 1:
            return self._with_bar(map(inspect, files), len(files))
        context = multiprocessing.get_context(self.start_method)
        try:
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                return self._with_bar(pool.map(inspect, files, chunksize=CHUNK), len(files))
        except BrokenProcessPool as error:
            raise DataError(
                f"one of the {workers} processes that read the files was killed, probably for want of memory: "
                "read them one at a time with --preflight_checks#workers 1."
            ) from error

    @staticmethod
    def _with_bar(findings: Iterable[Finding], total: int) -> list[Finding]:
        return list(
            tqdm(findings, total=total, desc="preflight", unit="file", leave=False, dynamic_ncols=True, disable=None)
        )
