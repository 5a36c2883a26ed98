"""Outcomes: what became of every case of a folder, and the tables of it that several processes fill together."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from scripts.data import LabelCoding
from scripts.errors import UserError
from scripts.files import replacing
from scripts.lock import held
from scripts.ranks import rank, wait_for_all, world_size

from .outputs import name_of
from .shares import Share, share_of_process

JOURNAL, JOURNALS = ".cases-{}-of-{}.jsonl", ".cases-*-of-*.jsonl"
# What a folder is locked for, a share of its masks.
MASKS, LOCKS = "masks-{}-of-{}", ".lock-masks-*-of-*"
Outcome = dict[str, Any]
# Columns of failures.csv.
FAILURES = ("case", "reason")


def class_volumes(mask: MetaTensor, label_coding: LabelCoding) -> list[tuple[int, float]]:
    """Voxels and millilitres of every class in a mask, by the affine of its image.

    Args:
        mask: (1, H, W, D) label values or, for overlapping regions, (C, H, W, D) of 0 and 1.
        label_coding: says which of the two they are, and C.
    """
    voxel = abs(torch.linalg.det(mask.affine[:3, :3].double()).item()) / 1000  # mm³ to ml
    places = [(0, c + 1) if label_coding.regions is None else (c, 1) for c in range(label_coding.num_classes)]
    counts = [int((mask[channel] == value).sum()) for channel, value in places]
    return [(count, count * voxel) for count in counts]


def volume_text(name: str, millilitres: float) -> str:
    """Such as "liver 1501 ml", or "class 1: 1501 ml" of a class without a name."""
    return f"class {name}: {millilitres:.4g} ml" if name.isdecimal() else f"{name} {millilitres:.4g} ml"


def checked_names(class_names: Sequence[str] | None, label_coding: LabelCoding) -> list[str]:
    """``class_names``, or "1", "2", ..., "C".

    Raises:
        UserError: when they are not as many as there are classes.
    """
    count = label_coding.num_classes
    names = [str(name) for name in class_names or range(1, count + 1)]
    if len(names) != count:
        raise UserError(f"class_names is {names}; there must be {count}, one for each class.")
    return names


class Outcomes:
    """Writes ``failures.csv`` (``case,reason``) and ``volumes.csv`` (``case,class,voxels,millilitres``) of a run.

    Every process appends a line per case to its journal, ``.cases-<k>-of-<n>.jsonl``, which survives when it is killed.
    When a run ends, the tables are made of all journals, which are then removed. A table without a row is left out.

    Args:
        output_dir: folder of the tables, made if missing, and locked for this process meanwhile.
        label_coding: of the decoded masks "pred"; None if only failures are of interest.
        class_names: names of the C classes. Default: "1", "2", ..., "C".
        save_volumes: whether there is to be a ``volumes.csv``.
        root: folder of the images; the cases are called after their path below it.
        share: see :func:`~scripts.inference.shares.share_of_process`.

    Raises:
        UserError: when ``class_names`` has another length than C, or ``share`` cannot be.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        label_coding: LabelCoding | None = None,
        class_names: Sequence[str] | None = None,
        save_volumes: bool = False,
        root: str | Path = "",
        share: str | None = None,
    ) -> None:
        self.folder = Path(output_dir)
        self.failures = self.folder / "failures.csv"
        self.label_coding = label_coding
        self.class_names = [] if label_coding is None else checked_names(class_names, label_coding)
        self.save_volumes = save_volumes
        self.root = root
        self.given, self.share = share, share_of_process(share)
        self.journal = self.folder / JOURNAL.format(*self.share)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Holds the folder while the block runs, then makes the tables, also after an error."""
        with held(self.folder, purpose=MASKS.format(*self.share)):
            self.begin()
            try:
                yield
            except BaseException:
                if world_size() == 1:  # else the others may not come to where they would be waited for
                    self.conclude()
                raise
            self.conclude()

    def attach(self, engine: Engine) -> None:
        """Lets ``engine`` enter what it has finished; whatever failed is entered by :meth:`failed`."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._enter)

    def begin(self) -> None:
        """Forgets what an earlier run left."""
        self.journal.unlink(missing_ok=True)
        if rank() == 0:
            for name in ("failures.csv", "volumes.csv"):
                (self.folder / name).unlink(missing_ok=True)

    def conclude(self) -> None:
        """Makes the tables, when all processes of the group have come here."""
        wait_for_all()
        if rank() == 0:
            outcomes = []
            for share in shares_in(self.folder, JOURNALS):
                journal = self.folder / JOURNAL.format(*share)
                if share[1] == self.share[1]:  # else a run of another number of processes has left it behind
                    outcomes += lines_of(journal)
                journal.unlink()
            self.write_tables(outcomes)

    def failed(self, image: str, reason: str) -> None:
        """Enters that no mask could be made of ``image``, and why."""
        self.enter({"case": name_of(image, self.root), "image": image, "reason": reason})

    def finished(self, item: dict[str, Any]) -> Outcome:
        """What is to be entered of a case whose outputs are complete, "pred" among them."""
        image = item["pred"].meta["filename_or_obj"]
        volumes = [] if self.label_coding is None else class_volumes(item["pred"], self.label_coding)
        rows = [[name, voxels, round(millilitres, 6)] for name, (voxels, millilitres) in zip(self.class_names, volumes)]
        return {"case": name_of(image, self.root), "image": image, "volumes": rows}

    def enter(self, outcome: Outcome) -> None:
        """Appends a line to the journal of this process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(outcome) + "\n")

    def write_tables(self, outcomes: Sequence[Outcome]) -> None:
        """Replaces the tables by those of ``outcomes``, in their order."""
        failures = [(o["image"], o["reason"]) for o in outcomes if "reason" in o]
        _write_csv(self.failures, FAILURES, failures)
        if self.save_volumes:
            rows = [(o["case"], *row) for o in outcomes for row in o.get("volumes", ())]
            _write_csv(self.folder / "volumes.csv", ("case", "class", "voxels", "millilitres"), rows)

    def _start(self, engine: Engine) -> None:
        self.started = time.monotonic()

    def _enter(self, engine: Any) -> None:
        for item in engine.state.output:
            self.enter(self.finished(item))


def shares_in(folder: Path, pattern: str) -> list[Share]:
    """The shares that the files of this pattern are of, in their order."""
    numbers = (re.findall(r"\d+", path.name) for path in folder.glob(pattern))
    return sorted((int(k), int(n)) for k, n in numbers)


def lines_of(journal: Path) -> list[Outcome]:
    """The lines of a journal, without one that its process could not finish."""
    found = []
    with suppress(FileNotFoundError):  # another process has just made tables of it
        for line in journal.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if not rows:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary:
        with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
