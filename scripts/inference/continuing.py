"""Continuing: a run leaves out what earlier ones with the same settings, weights and images have finished."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from scripts.data import DataError, LabelCoding, images_of
from scripts.data.colours import write_colour_table
from scripts.files import replacing
from scripts.lock import held, hold, is_free, release

from .outcomes import JOURNAL, JOURNALS, LOCKS, MASKS, Outcome, Outcomes, lines_of, shares_in, volume_text
from .outputs import facts_of, name_of, output_path
from .preview import write_page
from .shares import part_of

RECORD = "inference_settings.json"
# What the folder is locked for while a process reads and writes the record and the tables.
TABLES = "tables"
# How many times as long as a look at how far the other shares are the pause until the next is.
LOOK = 50
Facts = dict[str, Any]
logger = logging.getLogger(__name__)


class InferenceRecord(Outcomes):
    """``<output_dir>/inference_settings.json``: from which images, weights and settings the masks of a folder come.

    A case is entered once its mask is complete, with the size and the SHA-256 of each of its image files. It is
    finished when its mask is there and its files are still the same, whatever their dates say. Several processes may
    fill a folder, each with its share of the cases; what they enter is in their journals until one of them ends, which
    brings all of it into the record. The tables are made of the record, so that they are always whole.

    It also logs a line for each case, with how far all shares are, and writes the names and colours of the label values
    to ``classes.ctbl``, for viewers.

    Args:
        output_dir: of the masks.
        weights: file of weights, or several.
        model, options: settings that decide how masks look and what is beside them, by the names of their ids; of the
            options "save_volumes", "preview" and "label_values" are read here.
        overwrite: segment all cases of the share anew.
        kwargs: label_coding, class_names, root and share, see :class:`~scripts.inference.Outcomes`.
    """

    label_coding: LabelCoding

    def __init__(
        self,
        output_dir: str | Path,
        *,
        weights: str | Sequence[str],
        model: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        **kwargs: Any,
    ) -> None:
        settings = {name: plain(value) for name, value in {**model, **(options or {})}.items()}
        super().__init__(output_dir, save_volumes=bool(settings.get("save_volumes")), **kwargs)
        self.overwrite = overwrite
        self.weights = [weights] if isinstance(weights, str) else list(weights)
        self.content: Facts = {"settings": settings, "weights": [], "cases": {}}
        self.names: list[str] = []
        self.entered: set[str] = set()  # cases in the journals
        self.next_look = 0.0

    def unfinished(self, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the share's ``cases`` that are still to be segmented, in their order; begins or goes on.

        Args:
            cases: of all shares, dictionaries with "image", a path or a list of them.

        Raises:
            DataError: when an earlier run had other settings and left masks; when the mask of a case is that of an
                image elsewhere; when two cases would have one mask; when images lie in ``output_dir``, where masks
                would be taken for images; when another process has this share, or others of another number.
        """
        for folder in {Path(path).parent for case in cases for path in images_of(case)}:
            if self.folder.resolve() == folder.resolve():
                raise DataError(
                    f"output_dir {self.folder} is the folder of the images: choose another, to keep masks apart."
                )
        self._check_names(cases)
        own = part_of(cases, self.share)
        try:
            with held(self.folder, purpose=TABLES, wait=True):
                hold(self.folder, MASKS.format(*self.share))
                self.content["weights"] = [facts_of(path) for path in self.weights]
                self._merge(self._earlier())
                if self.overwrite:
                    self._forget(own)
                self._write()
            left = [case for case in own if not self._is_finished(case)]
        except DataError:
            release(self.folder, MASKS.format(*self.share))
            raise
        self._forget(left)
        if len(left) < len(own):
            finished = f"{len(own) - len(left)} of {len(own)} cases are finished in {self.folder} and left out"
            logger.info("%s; --overwrite true segments them anew", finished)
        return left

    def begin(self) -> None:
        """Does nothing: :meth:`unfinished` has begun."""

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._open)

    def conclude(self) -> None:
        """Brings what all processes have entered so far into the record and makes the tables of it."""
        with held(self.folder, purpose=TABLES, wait=True):
            self._merge(self._read() or self.content)
            self._write()
            self.write_tables([self.content["cases"][name] for name in self.names if name in self.content["cases"]])
            if self.content["settings"].get("preview"):
                write_page(self.folder, self.class_names)

    def finished(self, item: dict[str, Any]) -> Outcome:
        outcome = super().finished(item)
        volumes = ", ".join(volume_text(name, millilitres) for name, _, millilitres in outcome["volumes"])
        seconds, now = time.monotonic() - self.started, self.count() + 1
        left = (time.monotonic() - self.begun) / max(1, now - self.before) * (len(self.names) - now)
        logger.info(
            "%d of %d, %s left: %s: %.1f s; %s; %s",
            *(now, len(self.names), timedelta(seconds=round(left))),
            *(outcome["case"], seconds, volumes, self._mask(outcome["image"])),
        )
        return {**outcome, "files": json.loads(item["image"].meta["files"])}

    def enter(self, outcome: Outcome) -> None:
        super().enter(outcome)
        self.entered.add(outcome["case"])

    def count(self) -> int:
        """Cases of all shares that are finished or have failed by now."""
        if self.share[1] > 1 and (begun := time.monotonic()) >= self.next_look:
            journals = [self.folder / JOURNAL.format(*share) for share in shares_in(self.folder, JOURNALS)]
            self.entered |= {outcome["case"] for journal in journals for outcome in lines_of(journal)}
            self.next_look = (now := time.monotonic()) + LOOK * (now - begun)
        return len({*self.content["cases"], *self.entered}.intersection(self.names))

    def _check_names(self, cases: list[dict[str, Any]]) -> None:
        self.names = [self._name(case) for case in cases]
        images: dict[str, str] = {}
        for name, case in zip(self.names, cases):
            image = images_of(case)[0]
            if name in images:
                mask = self._mask(image)
                raise DataError(f"{images[name]} and {image} would have the same mask, {mask}: leave one out.")
            images[name] = image

    def _earlier(self) -> Facts | None:
        """The record of earlier runs if their masks stay; None if there are none, or all are to be made anew.

        Raises:
            DataError: when they had other settings and are not to be overwritten, or one of them still goes on.
        """
        others = [share for share in shares_in(self.folder, LOCKS) if share != self.share and not self._ended(share)]
        in_use = f"{self.folder} is being filled by a run of"
        remedy = f"wait until it ends; delete {LOCKS} there if its processes are gone."
        if any(n != self.share[1] for _, n in others):
            raise DataError(f"{in_use} {others[0][1]} share(s): start the same number, or {remedy}")
        earlier = self._read()
        if earlier is None:
            return None
        now, then = self.content["settings"], earlier["settings"]
        changed = [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
        if not changed and list(map(content, earlier["weights"])) == list(map(content, self.content["weights"])):
            return earlier
        # A run that ended before its first mask has left nothing that others would be mixed with.
        if not others and not any(self.folder.rglob("*_seg.nii.gz")):
            return None
        if changed and not self.overwrite:
            listed = ", ".join(f"{name} was {then.get(name)} and is {now.get(name)}" for name in changed)
            raise DataError(
                f"{self.folder} holds masks of a run with other settings ({listed}): choose another output_dir, or set "
                "overwrite to true to segment all cases anew."
            )
        if others:
            raise DataError(f"{in_use} other settings or weights: {remedy}")
        if not changed:
            logger.warning("the weights have changed since the masks in %s were made: all are made anew", self.folder)
        return None

    def _forget(self, cases: list[dict[str, Any]]) -> None:
        for case in cases:
            self.content["cases"].pop(self._name(case), None)

    def _merge(self, earlier: Facts | None) -> None:
        """Takes over the cases of ``earlier`` and of all journals, and removes those whose processes have ended."""
        self.content["cases"] = {} if earlier is None else earlier["cases"]
        for share in shares_in(self.folder, JOURNALS):
            journal = self.folder / JOURNAL.format(*share)
            if earlier is not None:
                self.content["cases"] |= {outcome["case"]: outcome for outcome in lines_of(journal)}
            if share == self.share or self._ended(share):
                journal.unlink(missing_ok=True)

    def _ended(self, share: tuple[int, int]) -> bool:
        return is_free(self.folder, MASKS.format(*share))

    def _is_finished(self, case: dict[str, Any]) -> bool:
        image = images_of(case)[0]
        entered, mask = self.content["cases"].get(self._name(case), {}).get("files"), self._mask(image)
        if entered is None or not mask.is_file():
            return False
        now = [facts_of(path) for path in images_of(case)]
        if [content(facts) for facts in entered] == [content(facts) for facts in now]:
            return True
        if [facts["path"] for facts in entered] != [facts["path"] for facts in now]:
            raise DataError(
                f"{mask} was made of {entered[0]['path']} and not of {now[0]['path']}: choose another output_dir, or "
                "set overwrite to true."
            )
        logger.warning("%s has changed since its mask was made, which is made anew", image)
        return False

    def _open(self, engine: Engine) -> None:
        if self.label_coding.regions is None:  # regions are channels of 0 and 1
            values = self.content["settings"].get("label_values")
            write_colour_table(self.folder / "classes.ctbl", self.class_names, values)
        self.begun, self.before = time.monotonic(), self.count()

    def _mask(self, image: str) -> Path:
        return output_path(image, "seg", output_dir=self.folder, root=self.root)

    def _name(self, case: dict[str, Any]) -> str:
        return name_of(images_of(case)[0], self.root)

    def _write(self) -> None:
        with replacing(self.folder / RECORD) as temporary:
            temporary.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")

    def _read(self) -> Facts | None:
        try:
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # none, or cut off: as if there had been no earlier run
            return None
        return record if isinstance(record, dict) and {"settings", "weights", "cases"} <= set(record) else None


def content(facts: Facts) -> tuple[Any, Any]:
    """What of :func:`facts_of` tells one content from another, wherever the file is."""
    return facts.get("bytes"), facts.get("sha256")


def plain(value: Any) -> Any:
    """``value`` as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))
