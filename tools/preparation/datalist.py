"""Datalist: dataset.json from a list of cases in another program's form: Auto3DSeg's, or nnU-Net's of version 1.

python -m tools.preparation.datalist --datalist task.json --data_dir images --fold 0 --labeled 6 --output_dir data
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.data import DataError, case_name
from scripts.data.folder import NIFTI_SUFFIXES
from scripts.errors import UserError
from tools.command_line import run_command

from .benchmark import check_output
from .dataset import relative
from .declared import CHANNELS, CLASSES, declared_modalities, write_lists

TESTS = ("test", "testing")


def convert_datalist(
    *, datalist: str, output_dir: str, data_dir: str | None = None, fold: int | None = None, labeled: int | None = None
) -> Path:
    """Writes ``output_dir/dataset.json``; the files stay where they are.

    Args:
        datalist: JSON file with "training", and "testing" or "test". Of Auto3DSeg, the entries have a "fold".
        output_dir: made if missing.
        data_dir: folder that the paths are relative to; by default that of ``datalist``.
        fold: whose cases are for validation, where entries have one.
        labeled: how many of the other training cases keep their labels, in their order; by default all that have one.

    Returns:
        Path of dataset.json.

    Raises:
        DataError: when the list cannot be read, or has folds and ``fold`` is none of them.
    """
    root, source = check_output(output_dir), Path(datalist)
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        training = [_entry(item) for item in content["training"]]
        tests = [_entry(item) for name in TESTS for item in content.get(name, [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source} is no list of cases ({type(error).__name__}: {error}): correct it.") from None
    folds = sorted({item["fold"] for item in training if "fold" in item})
    if (folds or fold is not None) and fold not in folds:
        raise DataError(f"fold is {fold!r} and {source} has the folds {folds or 'none'}: give one of them.")
    channels = len(declared_modalities(content)) or 1
    base = source.parent if data_dir is None else Path(data_dir)

    def converted(item: dict[str, Any]) -> dict[str, Any]:
        names = item["image"] if isinstance(item["image"], list) else _channel_files(base / item["image"], channels)
        files = {"image": relative([base / name for name in names], root)}
        return {**files, **({"label": relative(base / item["label"], root)} if item.get("label") else {})}

    held_out = [item for item in training if folds and item.get("fold") == fold]
    others = [item for item in training if item not in held_out]
    with_label = [item for item in others if item.get("label")]
    kept = with_label[: len(with_label) if labeled is None else labeled]
    unlabeled = [{"image": item["image"]} for item in others if item not in kept]
    lists = {"training": kept, "unlabeled": unlabeled, "validation": held_out, "test": tests}
    header = {key: content[key] for key in (*CHANNELS, CLASSES) if isinstance(content.get(key), dict)}
    path = write_lists(root, header, {name: [converted(item) for item in items] for name, items in lists.items()})
    print(", ".join(f"{len(items)} {'labeled' if name == 'training' else name}" for name, items in lists.items()))
    return path


def _entry(item: Any) -> dict[str, Any]:
    entry = {"image": item} if isinstance(item, str) else dict(item)
    if not entry["image"]:
        raise UserError(f"{item!r} has no image")
    return entry


def _channel_files(image: Path, channels: int) -> list[Path]:
    """``image`` itself, or its files ``a_0000.nii.gz``, ... where nnU-Net lists ``a.nii.gz`` for them."""
    suffix = next((end for end in NIFTI_SUFFIXES if image.name.endswith(end)), "")
    files = [image.with_name(f"{case_name(image)}_{channel:04d}{suffix}") for channel in range(channels)]
    return files if not image.exists() and files[0].exists() else [image]


if __name__ == "__main__":
    run_command(convert_datalist)
