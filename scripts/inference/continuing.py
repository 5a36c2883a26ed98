"""Continuing: a run leaves out what an earlier one with the same settings, weights and images has finished."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from scripts.data import DataError, images_of
from scripts.files import replacing, sha256
from scripts.lock import hold

from .outputs import MASKS, output_path

RECORD = "inference_settings.json"
Facts = dict[str, Any]
logger = logging.getLogger(__name__)


class InferenceRecord:
    """``<output_dir>/inference_settings.json``: from which images, weights and settings the masks of a folder come.

    A mask is entered once it is complete, with the size and the SHA-256 of every image file of its case. A case is
    finished when its mask is there and its entry has the same, whatever the dates of the files say. Attach it to the
    evaluator.

    Args:
        output_dir: folder of the masks.
        weights: file of weights, or several.
        settings: whatever else decides how the masks look, by the names of the ids.
        root: folder that the paths of the images are relative to in ``output_dir``, see :func:`output_path`.
        overwrite: segment all cases anew.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        weights: str | Sequence[str],
        settings: Mapping[str, Any],
        root: str | Path = "",
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(output_dir)
        self.root = root
        self.overwrite = overwrite
        paths = [weights] if isinstance(weights, str) else list(weights)
        self.content: Facts = {"settings": {name: plain(value) for name, value in settings.items()}}
        self.content |= {"weights": paths, "masks": {}}  # of the weights, later, their digests
        self.images: dict[str, list[Facts]] = {}

    def unfinished(self, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of ``cases`` that are still to be segmented, in their order; begins or continues the record.

        Args:
            cases: dictionaries with "image", a path or a list of them.

        Raises:
            DataError: when an earlier run had other settings and left masks; when the mask of a case is that of an
                image elsewhere; when two cases would have one mask; when images lie in ``output_dir``, where masks
                would be taken for images; when another process writes there.
        """
        for case in cases:
            for path in images_of(case):
                if self.folder.resolve() == Path(path).parent.resolve():
                    raise DataError(
                        f"output_dir {self.folder} is the folder of the images: choose another, to keep masks apart."
                    )
        hold(self.folder, MASKS)
        self.content["weights"] = [facts_of(path) for path in self.content["weights"]]
        self.images = {images_of(case)[0]: [facts_of(path) for path in images_of(case)] for case in cases}
        self._check_names()
        self._continue()
        left = [case for case in cases if not self._is_finished(images_of(case)[0])]
        if len(left) < len(cases):
            logger.info(
                "%d of %d cases are finished in %s and left out; --overwrite true segments them anew",
                len(cases) - len(left),
                len(cases),
                self.folder,
            )
        self._write()
        return left

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._enter)

    def _check_names(self) -> None:
        masks: dict[Path, str] = {}
        for image in self.images:
            other = masks.setdefault(self._mask(image), image)
            if other != image:
                raise DataError(f"{other} and {image} would have the same mask, {self._mask(image)}: leave one out.")

    def _continue(self) -> None:
        """Takes over the entries of an earlier run with the same settings and weights."""
        # A run that ended before its first mask has left nothing that others would be mixed with.
        earlier = self._read() if not self.overwrite and any(self.folder.rglob("*_seg.nii.gz")) else None
        if earlier is None:
            return
        now, then = self.content["settings"], earlier["settings"]
        changed = [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
        if changed:
            listed = ", ".join(f"{name} was {then.get(name)} and is {now.get(name)}" for name in changed)
            raise DataError(
                f"{self.folder} holds masks of a run with other settings ({listed}): choose another output_dir, or set "
                "overwrite to true to segment all cases anew."
            )
        if [content(facts) for facts in earlier["weights"]] != [content(facts) for facts in self.content["weights"]]:
            logger.warning("the weights have changed since the masks in %s were made: all are made anew", self.folder)
            return
        self.content["masks"] = earlier["masks"]

    def _is_finished(self, image: str) -> bool:
        mask = self._mask(image)
        entered = self.content["masks"].get(self._name(mask))
        if entered is None or not mask.is_file():
            return False
        now = self.images[image]
        if [content(facts) for facts in entered] == [content(facts) for facts in now]:
            return True
        if [facts["path"] for facts in entered] != [facts["path"] for facts in now]:
            raise DataError(
                f"{mask} was made of {entered[0]['path']} and not of {now[0]['path']}: choose another output_dir, or "
                "set overwrite to true."
            )
        logger.warning("%s has changed since its mask was made, which is made anew", image)
        return False

    def _enter(self, engine: Any) -> None:
        for item in engine.state.output:
            image = item["pred"].meta["filename_or_obj"]
            if image in self.images:
                self.content["masks"][self._name(self._mask(image))] = self.images[image]
        if engine.state.output:
            self._write()

    def _mask(self, image: str) -> Path:
        return output_path(image, "seg", output_dir=self.folder, root=self.root)

    def _name(self, mask: Path) -> str:
        return mask.relative_to(self.folder).as_posix()

    def _write(self) -> None:
        with replacing(self.folder / RECORD) as temporary:
            temporary.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")

    def _read(self) -> Facts | None:
        try:
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # none, or cut off: as if there had been no earlier run
            return None
        return record if isinstance(record, dict) and {"settings", "weights", "masks"} <= set(record) else None


def facts_of(path: str | Path) -> Facts:
    """Where a file is, how large, and the SHA-256 of its content; its path alone if it is no file or cannot be read."""
    where = os.path.abspath(path)
    try:
        if os.path.isfile(where):  # reading a pipe would wait for ever
            return {"path": where, "bytes": os.path.getsize(where), "sha256": sha256(Path(where))}
    except OSError:
        pass
    return {"path": where}


def content(facts: Facts) -> tuple[Any, Any]:
    """What of :func:`facts_of` tells one content from another, wherever the file is."""
    return facts.get("bytes"), facts.get("sha256")


def plain(value: Any) -> Any:
    """``value`` as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))
