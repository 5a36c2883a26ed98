"""Datalist: which cases are labeled, unlabeled, for validation and for test, read from a dataset.json."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .problems import DataError

Case = dict[str, Any]
LISTS = ("training", "unlabeled", "validation", "test")
# Those of whole cases that no training has seen.
EVALUATED = ("test", "validation")
NIFTI_SUFFIXES = (".nii.gz", ".nii")
# What stands between a case's name and that of a channel.
SEPARATORS = "_-"
# Volumes of other formats, which inference does not read and must not pass over in silence.
OTHER_SUFFIXES = (
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".dcm",
    ".img",
    ".hdr",
    ".mgz",
    ".mgh",
    ".minc",
    ".mnc",
    ".npy",
    ".h5",
)


def case_name(path: str | Path) -> str:
    """The file name of an image without its NIfTI suffix, by which a case is known in every output."""
    name = Path(path).name
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def images_in(
    directory: str | Path, *, in_channels: int = 1, modalities: Sequence[str] | str | None = None
) -> list[Case]:
    """The NIfTI files of a folder as a list of ``{"image": path}``, sorted by name; hidden ones are left out.

    Of a case with one file per channel the paths are a list, in the order of the channels. A file of it that is missing
    is listed as if it were there, so that the case is reported with the name of what it lacks. What else looks like a
    volume, and subfolders, are named in a warning.

    Args:
        directory: folder to look in.
        in_channels: channels that the network takes; above 1, ``a_0000.nii.gz``, ``a_0001.nii.gz``, ... are those of
            case ``a``, as in nnU-Net.
        modalities: instead of these numbers, what the channels' files end in behind ``_`` or ``-``:
            ``["flair", "t1"]``, in upper or lower case.

    Raises:
        DataError: when the folder is missing or holds no .nii.gz or .nii file, there are not as many modalities as
            channels, or two files are the same channel of a case.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the folder of your NIfTI images as --input_dir.")
    # Not only regular files: a broken link or a folder of that name is to be reported as a case that failed.
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in entries if path.name.lower().endswith(NIFTI_SUFFIXES)]
    others = [p.name for p in entries if p not in files and (p.suffix.lower() in OTHER_SUFFIXES or p.is_dir())]
    left_out = f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}"
    convert = "convert volumes to NIfTI, and move those of subfolders up"
    if not files:
        found = f" but {left_out}: {convert}" if others else ": give the folder of your images as --input_dir"
        raise DataError(f"{folder} holds no .nii.gz or .nii file{found}.")
    if others:
        logging.getLogger(__name__).warning("%s: %s not segmented; %s", folder, left_out, convert)
    endings = _endings(in_channels, modalities)
    # Behind - a number is more likely a case's own.
    separators = "_" if modalities is None else SEPARATORS
    cases: dict[Path, list[Path]] = {}
    channel_files: dict[tuple[Path, str], Path] = {}
    for path in files:
        parts = cut_ending(case_name(path), endings, separators=separators)
        if parts is None:
            cases[path] = [path]
            continue
        stem, separator, ending = parts
        # Files of both separators are two cases: neither may take the place of the other.
        case = folder / (stem + separator)
        other = channel_files.setdefault((case, ending), path)
        if other != path:
            raise DataError(f"{other} and {path} are both the channel {ending} of case {stem!r}: move one.")
        channels = cases.setdefault(case, [])
        if not channels:
            suffix = path.name[len(case_name(path)) :]
            channels += [folder / f"{stem}{separator}{name}{suffix}" for name in endings]
        channels[endings.index(ending)] = path
    by_name: dict[str, Path] = {}
    for first, *_ in cases.values():
        same_name = by_name.setdefault(case_name(first), first)
        if same_name != first:
            raise DataError(
                f"{same_name} and {first} would have the same mask, {case_name(first)}_seg.nii.gz: move one."
            )
    return [{"image": str(c[0]) if len(c) == 1 else [str(path) for path in c]} for c in cases.values()]


def cut_ending(name: str, endings: Sequence[str], *, separators: str = SEPARATORS) -> tuple[str, str, str] | None:
    """A name as the case's, separator and ending, the longest that fits: t1_ce rather than ce; None if none does.

    Upper and lower case are the same, except where endings differ in nothing else.
    """
    for ending in sorted(endings, key=lambda ending: (len(ending), name.endswith(ending)), reverse=True):
        for separator in separators:
            end = len(name) - len(separator + ending)
            if end > 0 and name[end:].lower() == (separator + ending).lower():
                return name[:end], separator, ending
    return None


def _endings(in_channels: int, modalities: Sequence[str] | str | None) -> list[str]:
    """What the names of a case's files end in, one per channel; empty where a file is a case."""
    if modalities is None:
        return [f"{channel:04d}" for channel in range(in_channels)] if in_channels > 1 else []
    names = [str(name) for name in (modalities.split(",") if isinstance(modalities, str) else modalities)]
    if len(names) != in_channels or len(set(names)) != len(names):
        raise DataError(
            f"modalities is {modalities!r} and the network takes {in_channels} channel(s): name each of them once, in "
            "the order of the training."
        )
    return names


class Datalist:
    """The cases of a data set in the Medical Segmentation Decathlon's form.

    ``dataset.json`` has an ordered list ``training`` of ``{"image": ..., "label": ...}`` with paths relative to the
    folder, and optional lists ``unlabeled``, ``validation`` and ``test``. The first ``num_labeled`` training cases are
    the labeled ones; all others are used as unlabeled and their label files are never opened, nor need they exist.
    A case in which only some label values were annotated names them: ``"annotated": [1]``.

    Args:
        dataset_dir: folder of dataset.json.
        splits: cuts a training list that holds all cases, for data sets that come without the other lists:
            ``{"training": [0, 56], "validation": [56, 64], "test": [64, 80]}`` with half-open ranges of positions.
        optional: without a dataset.json the lists are empty, and only asking for labeled or required cases is an
            error: clients such as MONAI Label bring the labeled cases of a training themselves.

    Raises:
        DataError: when dataset.json is missing, is not JSON or does not have this form, or when a range of ``splits``
            lies outside the list or overlaps another.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        *,
        splits: Mapping[str, Sequence[int]] | None = None,
        optional: bool = False,
    ) -> None:
        self.folder = Path(dataset_dir)
        self.path = self.folder / "dataset.json"
        self.missing = optional and not self.path.is_file()
        content = {} if self.missing else self._read()
        lists = {name: self._cases(content, name) for name in LISTS}
        if splits and not self.missing:
            lists.update(self._cut(lists["training"], splits))
        self.training = lists["training"]
        self.validation = lists["validation"]
        self.test = lists["test"]
        self._unlabeled = lists["unlabeled"]

    @property
    def partial(self) -> bool:
        """Whether there is a case in which only some label values were annotated."""
        return any("annotated" in case for case in [*self.training, *self.validation, *self.test])

    def labeled(self, num_labeled: int, *, batch_size: int = 1) -> list[Case]:
        """The first ``num_labeled`` training cases, image and label.

        Raises:
            DataError: when there are fewer, or fewer than a batch of ``batch_size`` needs, or one has no label.
        """
        if self.missing:
            raise self._missing_file()
        if num_labeled > len(self.training):
            raise DataError(
                f"num_labeled is {num_labeled} and {self.path} lists {len(self.training)} training cases: "
                "lower num_labeled or list more."
            )
        if batch_size < 1:
            raise DataError(f"labeled_batch_size is {batch_size}; a batch needs at least one labeled crop.")
        if num_labeled < batch_size:
            raise DataError(
                f"num_labeled is {num_labeled} and a batch needs {batch_size} labeled cases: "
                "raise num_labeled or lower labeled_batch_size."
            )
        cases = self.training[:num_labeled]
        without = [case["image"] for case in cases if "label" not in case]
        if without:
            raise DataError(
                f"{self.path}: the first {num_labeled} training cases must have a label, and {without[0]} has none: "
                "move it behind them or to the list 'unlabeled', or lower num_labeled."
            )
        return cases

    def unlabeled(self, num_labeled: int) -> list[Case]:
        """Images of all other training cases and of the list ``unlabeled``. They have no label key. May be empty."""
        return [{"image": case["image"]} for case in [*self.training[num_labeled:], *self._unlabeled]]

    def required(self, name: str) -> list[Case]:
        """The list ``name``, "test" or "validation", which must not be empty, with outputs named after its images.

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
        except FileNotFoundError:
            raise self._missing_file() from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} is not valid JSON ({error}): correct the file.") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.path} must be an object with a list 'training' of cases.")
        return content

    def _missing_file(self) -> DataError:
        return DataError(
            f"{self.path} does not exist: set dataset_dir to a folder with a dataset.json (docs/data.md says how)."
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
            case: Case = {key: self._resolve(entry[key]) for key in ("image", "label") if entry.get(key)}
            if entry.get("annotated") is not None:
                case["annotated"] = self._annotated(entry["annotated"], f"entry {i} of {name!r}")
            cases.append(case)
        return cases

    def _annotated(self, values: Any, where: str) -> list[int]:
        if not isinstance(values, list) or not values or not all(type(v) is int and v > 0 for v in values):
            raise DataError(
                f"{self.path}: {where} has 'annotated': {values!r}; it lists the label values that were annotated in "
                "this case, such as [1]. Leave it out where all were."
            )
        return values

    def _resolve(self, path: str | list[str]) -> str | list[str]:
        """Path(s) below the folder; several modalities of a case are a list of files."""
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
