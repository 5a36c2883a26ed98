"""Datalist: the labeled, unlabeled, validation and test cases of a dataset.json."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .folder import NIFTI_SUFFIXES, Case, case_name
from .problems import DataError

LISTS = ("training", "unlabeled", "validation", "test")
# Cases whose label a network made (tools/self_training.py); the lists whose labels people made have none of them.
PSEUDO, TRUE = "pseudo_labeled", ("training", "validation", "test")
# Tells the random numbers of draws of labeled cases from others of the same seed.
LABELED_DRAW = 3
# Those of whole cases that no training has seen.
EVALUATED = ("test", "validation")


class Datalist:
    """The cases of a data set in the format of the Medical Segmentation Decathlon.

    ``dataset.json`` has an ordered list ``training`` of ``{"image": ..., "label": ...}`` with paths relative to the
    folder, and optional lists ``unlabeled``, ``validation`` and ``test``. The first ``num_labeled`` training cases are
    the labeled ones; all others are used as unlabeled and their label files are never opened, nor need they exist.
    A case in which only some label values were annotated names them: ``"annotated": [1]``.

    A further list ``pseudo_labeled`` has cases whose label a network made, each with an entry ``pseudo_label`` that
    says which. They stay in the list of unlabeled cases that they come from, too.

    Args:
        dataset_dir: folder of dataset.json.
        splits: cuts a training list that holds all cases, for data sets that come without the other lists:
            ``{"training": [0, 56], "validation": [56, 64], "test": [64, 80]}`` with half-open ranges of positions.
        labeled_draw: which training cases are the labeled ones: 0, the first in the list; any other number, a random
            order of those that have a label, the same for the same number.
        optional: without a dataset.json the lists are empty, and only asking for labeled or required cases is an
            error: clients such as MONAI Label bring the labeled cases of a training themselves.

    Raises:
        DataError: when dataset.json is missing, is not JSON or does not have this form, or when a range of ``splits``
            lies outside the list or overlaps another; when validation, test or training list a pseudo-label, or
            validation or test the image of one.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        *,
        splits: Mapping[str, Sequence[int]] | None = None,
        labeled_draw: int = 0,
        optional: bool = False,
    ) -> None:
        self.folder = Path(dataset_dir)
        self.path = self.folder / "dataset.json"
        self.missing = optional and not self.path.is_file()
        content = {} if self.missing else self._read()
        lists = {name: self._cases(content, name) for name in LISTS}
        if splits and not self.missing:
            lists.update(self._cut(lists["training"], splits))
        self.training = drawn(lists["training"], labeled_draw)
        self.validation = lists["validation"]
        self.test = lists["test"]
        self._unlabeled = lists["unlabeled"]
        self._pseudo_labeled = self._cases(content, PSEUDO)
        self._refuse_evaluation_on_pseudo_labels()

    @property
    def partial(self) -> bool:
        """Whether any case has only some label values annotated."""
        return any(
            "annotated" in case for case in [*self.training, *self._pseudo_labeled, *self.validation, *self.test]
        )

    def labeled(self, num_labeled: int) -> list[Case]:
        """The first ``num_labeled`` training cases, image and label.

        Raises:
            DataError: when ``num_labeled`` is below 1, when there are fewer cases, or when one has no label.
        """
        if self.missing:
            raise self._missing_file()
        if num_labeled > len(self.training):
            raise DataError(
                f"num_labeled is {num_labeled} and {self.path} lists {len(self.training)} training cases: "
                "lower num_labeled or list more."
            )
        if num_labeled < 1:
            raise DataError(f"num_labeled is {num_labeled}; a training needs at least one labeled case.")
        cases = self.training[:num_labeled]
        without = [case["image"] for case in cases if "label" not in case]
        if without:
            raise DataError(
                f"{self.path}: the first {num_labeled} training cases must have a label, and {without[0]} has none: "
                "move it behind them or to the list 'unlabeled', or lower num_labeled."
            )
        return cases

    def unlabeled(self, num_labeled: int) -> list[Case]:
        """Images of all other training cases and of the list ``unlabeled``, without a label key. May be empty."""
        return [{"image": case["image"]} for case in [*self.training[num_labeled:], *self._unlabeled]]

    def pseudo_labeled(self, num_labeled: int, *, batch_size: int) -> list[Case]:
        """Images and pseudo-labels of the list ``pseudo_labeled``, without the ``num_labeled`` cases with a true label.

        Raises:
            DataError: when a batch needs ``batch_size`` of them and there is none, or one has no label.
        """
        if batch_size == 0:
            if self._pseudo_labeled:
                logging.getLogger(__name__).warning(
                    "%s: the %d cases of %r are left out, since pseudo_batch_size is 0.",
                    self.path,
                    len(self._pseudo_labeled),
                    PSEUDO,
                )
            return []
        true = _files(self.training[:num_labeled], "image")
        cases = [case for case in self._pseudo_labeled if not true & _files([case], "image")]
        if not cases or not all("label" in case for case in cases):
            raise DataError(
                f"pseudo_batch_size is {batch_size} and {self.path} has no list {PSEUDO!r} of cases with a label that "
                "are not labeled anyway: make one (docs/how_to/self_training.md), or set it to 0."
            )
        return cases

    def required(self, name: str) -> list[Case]:
        """The list ``name`` ("test" or "validation"); raises if it is empty or two images would have the same output.

        Raises:
            DataError: when it is another list, is empty, or two of its images have the same file name.
        """
        if name not in EVALUATED:
            raise DataError(f"evaluation_list is {name!r}; it must be one of {', '.join(EVALUATED)}.")
        if self.missing:
            raise self._missing_file()
        cases = getattr(self, name)
        if not cases:
            raise DataError(f"{self.path} has no list {name!r}: add one, or cut it from 'training' with splits.")
        names = [case_name(np.atleast_1d(case["image"])[0]) for case in cases]
        repeated = sorted({case for case in names if names.count(case) > 1})
        if repeated:
            raise DataError(
                f"{self.path}: {name!r} has several images called {repeated[0]}, whose masks would "
                "overwrite each other: rename them."
            )
        return cases

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing_file() from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} is not valid JSON ({error}): correct the file.") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.path} must be an object with a list 'training' of cases.")
        self._check_form(content)
        return content

    def _check_form(self, content: dict[str, Any]) -> None:
        """Raises DataError for lists of other programs, of which a part would be ignored, and names the converter."""
        training = content.get("training", [])
        entries = [entry for entry in training if isinstance(entry, dict)] if isinstance(training, list) else []
        convert = f"convert it with python -m tools.preparation.datalist --datalist {self.path} --output_dir DIR"
        if "testing" in content or any("fold" in entry for entry in entries):
            raise DataError(f"{self.path} is Auto3DSeg's (it has 'testing' or 'fold'): {convert} --fold 0.")
        if "file_ending" in content and not any(name in content for name in LISTS):
            folders = f"--image_dir {self.folder / 'imagesTr'} --label_dir {self.folder / 'labelsTr'}"
            raise DataError(
                f"{self.path} is nnU-Net's and lists no cases: make a list with python -m tools.preparation.dataset "
                f"{folders} --output_dir DIR."
            )
        first = entries[0].get("image") if entries else None
        if isinstance(first, str) and first.endswith(NIFTI_SUFFIXES):
            suffix = next(end for end in NIFTI_SUFFIXES if first.endswith(end))
            numbered = (self.folder / first).with_name(f"{case_name(first)}_0000{suffix}")
            if not os.path.exists(self.folder / first) and os.path.exists(numbered):
                raise DataError(f"{self.path} is nnU-Net's (its {first} is {numbered.name}): {convert}.")

    def _missing_file(self) -> DataError:
        if (self.folder / "dataset_description.json").is_file():
            return DataError(
                f"{self.folder} is a BIDS data set: make a list of its cases with python -m tools.preparation.dataset "
                f"--image_dir {self.folder} --label_dir {self.folder / 'derivatives' / 'labels'} --output_dir DIR."
            )
        if self.folder.is_file():
            return DataError(f"dataset_dir {self.folder} is a file: give its folder, {self.folder.parent}.")
        return DataError(
            f"{self.path} does not exist: set dataset_dir to a folder with a dataset.json (docs/data.md), which "
            "python -m scripts prepare makes from folders of images and labels."
        )

    def _cases(self, content: dict[str, Any], name: str) -> list[Case]:
        entries = content.get(name, [])
        if not isinstance(entries, list):
            raise DataError(f"{self.path} must be an object with a list {name!r} of cases and has {entries!r} there.")
        cases = []
        for i, entry in enumerate(entries):
            entry = {"image": entry} if isinstance(entry, (str, list)) else entry
            if not isinstance(entry, dict) or not entry.get("image"):
                raise DataError(f'{self.path}: entry {i} of {name!r} is {entry!r}; it must be {{"image": path, ...}}.')
            if name in TRUE and "pseudo_label" in entry:
                raise DataError(
                    f"{self.path}: entry {i} of {name!r}, {entry['image']}, has a pseudo-label, and that list has true "
                    f"labels alone: move it to the list {PSEUDO!r}."
                )
            case: Case = {key: self._resolve(entry[key]) for key in ("image", "label") if entry.get(key)}
            if entry.get("annotated") is not None:
                case["annotated"] = self._annotated(entry["annotated"], f"entry {i} of {name!r}")
            cases.append(case)
        return cases

    def _refuse_evaluation_on_pseudo_labels(self) -> None:
        """Raises if a label is both a pseudo-label and a true one, or if an evaluated image has a pseudo-label."""
        images, labels = (_files(self._pseudo_labeled, key) for key in ("image", "label"))
        for name in TRUE:
            for case in getattr(self, name):
                if labels & _files([case], "label"):
                    raise DataError(
                        f"{self.path}: {name!r} takes {case['label']} for a true label, and {PSEUDO!r} has it as a "
                        f"pseudo-label: take the case out of {name!r}."
                    )
                if name in EVALUATED and images & _files([case], "image"):
                    raise DataError(
                        f"{self.path}: {case['image']} of {name!r} is in {PSEUDO!r}, too, where it is trained on: take "
                        "it out there, or make the pseudo-labels again with these splits."
                    )

    def _annotated(self, values: Any, where: str) -> list[int]:
        if not isinstance(values, list) or not values or not all(type(v) is int and v > 0 for v in values):
            raise DataError(
                f"{self.path}: {where} has 'annotated': {values!r}; it lists the label values that were annotated in "
                "this case, such as [1]. Leave it out where all were."
            )
        return values

    def _resolve(self, path: str | list[str]) -> str | list[str]:
        """Path(s) in the folder; several modalities of a case are a list of files."""
        return [self._path(p) for p in path] if isinstance(path, list) else self._path(path)

    def _path(self, path: str) -> str:
        joined = self.folder / path
        # Messages are about these paths: one that leads out of the folder is shown as it would be typed. The last part
        # stays, since a case is called after it even where it is a link into an archive.
        return str(Path(os.path.realpath(joined.parent)) / joined.name) if ".." in Path(path).parts else str(joined)

    def _cut(self, cases: list[Case], splits: Mapping[str, Sequence[int]]) -> dict[str, list[Case]]:
        used: set[int] = set()
        for name, bounds in splits.items():
            if name not in LISTS:
                raise DataError(f"splits names {name!r}; the lists are {', '.join(LISTS)}.")
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= len(cases):
                raise DataError(
                    f"splits gives {name!r} the range {list(bounds)} and {self.path} has {len(cases)} training cases: "
                    "give a range [first, end] inside the list."
                )
            positions = set(range(*bounds))
            if used & positions:
                raise DataError(f"splits puts position {min(used & positions)} of {self.path} in two lists.")
            used |= positions
        lists = {name: cases[slice(*bounds)] for name, bounds in splits.items()}
        # Cases that were cut for validation or test are never trained on.
        return {"training": [case for i, case in enumerate(cases) if i not in used], **lists}


def _files(cases: list[Case], key: str) -> set[str]:
    """The files of the cases under "image" or "label", with links and relative paths resolved."""
    return {os.path.realpath(path) for case in cases if key in case for path in np.atleast_1d(case[key])}


def drawn(cases: list[Case], draw: int) -> list[Case]:
    """``cases`` with the labeled ones first and in random order; unchanged for draw 0."""
    if draw == 0:
        return cases
    order = np.random.default_rng([draw, LABELED_DRAW]).permutation(len(cases))
    shuffled = [cases[i] for i in order]
    return sorted(shuffled, key=lambda case: "label" not in case)
