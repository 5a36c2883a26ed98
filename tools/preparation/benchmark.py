"""Benchmark: what the three benchmarks' commands share: their lists of cases, the crop, and writing dataset.json."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.data import DataError, foreground_box
from scripts.errors import UserError

from .declared import write_lists
from .volumes import save_volume

CASE_LISTS = Path(__file__).resolve().parent / "case_lists"
LISTED = 5
Box = tuple[slice, ...]  # of the three axes


def case_list(name: str) -> dict[str, list[str]]:
    """The benchmark's lists "training" (in order), "validation" where it has one, and "test" of case names."""
    return json.loads((CASE_LISTS / f"{name}.json").read_text(encoding="utf-8"))


def available(lists: Mapping[str, Sequence[str]], found: Iterable[str], where: Path) -> dict[str, list[str]]:
    """The lists without the cases that are not there, which are printed.

    Raises:
        DataError: when no case of the training list is there.
    """
    found = set(found)
    kept = {role: [name for name in names if name in found] for role, names in lists.items()}
    if not kept["training"]:
        raise DataError(
            f"{where} holds none of the benchmark's training cases ({', '.join(lists['training'][:LISTED])}, ...): "
            "give the folder that the archive unpacks to as --input_dir."
        )
    for role, names in lists.items():
        missing = [name for name in names if name not in found]
        if missing:
            print(
                f"{len(missing)} of the {len(names)} {role} cases are not in {where}: {', '.join(missing[:LISTED])} ..."
            )
    return kept


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises DataError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise DataError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")


def check_output(output_dir: str) -> Path:
    """``output_dir`` as a path.

    Raises:
        DataError: when it holds a data set.
    """
    root = Path(str(output_dir))
    if (root / "dataset.json").exists():
        raise DataError(f"output_dir {root} already holds a data set: delete it, or give another folder.")
    return root


def bounding_box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First voxel and the one behind the last, (3,) each, of the non-zero part of ``mask`` (H, W, D).

    Raises:
        UserError: when the mask is empty.
    """
    box = foreground_box(mask)
    if box is None:
        raise UserError("the mask is empty, so there is no box around it.")
    return np.array([edge.start for edge in box]), np.array([edge.stop for edge in box])


def padded_box(
    mask: np.ndarray,
    *,
    minimum: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    margin_first: bool = False,
) -> Box:
    """The box around ``mask`` (H, W, D), widened to ``minimum`` and then by margins, all in voxels, within the volume.

    With ``margin_first`` the margins come first, so that they count for the minimum.
    """
    first, end = bounding_box(mask)
    if margin_first:
        first, end = first - np.asarray(before), end + np.asarray(after)
        before = after = (0, 0, 0)
    short = np.maximum(np.asarray(minimum) - (end - first), 0)
    first = np.maximum(first - (short + 1) // 2 - np.asarray(before), 0)
    end = np.minimum(end + (short + 1) // 2 + np.asarray(after), mask.shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(first, end))


def cut(array: np.ndarray, affine: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The part of ``array`` (H, W, D) in ``box`` and its affine (4, 4), so that every voxel stays where it was."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    return array[box], moved


def write_benchmark(
    root: Path,
    lists: Mapping[str, Sequence[str]],
    prepare: Callable[[str], tuple[Sequence[np.ndarray], np.ndarray, np.ndarray]],
    header: Mapping[str, object],
) -> Path:
    """Prepares every case, several at a time, and writes the volumes and ``dataset.json``, last, below ``root``.

    Args:
        root: made if missing.
        lists: case names by role.
        prepare: of a case's name, its channels, each (H, W, D), the label (H, W, D) and their affine (4, 4), mm.
        header: further entries of dataset.json.

    Returns:
        Path of dataset.json.
    """

    def write(name: str) -> dict[str, str | list[str]]:
        channels, label, affine = prepare(name)
        images = []
        for number, channel in enumerate(channels):
            suffix = f"_{number:04d}" if len(channels) > 1 else ""
            images.append(f"images/{name}{suffix}.nii.gz")
            save_volume(channel, affine, root / images[-1])
        save_volume(label.astype(np.uint8), affine, root / "labels" / f"{name}.nii.gz")
        return {"image": images if len(images) > 1 else images[0], "label": f"labels/{name}.nii.gz"}

    names = [name for role in lists.values() for name in role]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # each holds a whole scan
        entries = dict(zip(names, tqdm(pool.map(write, names), total=len(names), desc="cases")))
    path = write_lists(root, header, {role: [entries[name] for name in members] for role, members in lists.items()})
    print(", ".join(f"{len(members)} {role}" for role, members in lists.items()))
    return path
