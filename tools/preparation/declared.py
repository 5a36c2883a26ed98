"""Declared: what a dataset.json of the Decathlon or of nnU-Net says of channels and classes; and writing one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.data import DataError

CHANNELS = ("modality", "channel_names")
CLASSES = "labels"
ORIGINAL = "label_values"  # those of the classes 1, 2, ... before they were renumbered
IGNORE = "ignore"  # nnU-Net's name for the value of voxels that nobody annotated


def declared_beside(image_dir: str | Path) -> dict[str, Any]:
    """What the dataset.json beside a folder of images says of channels and classes; empty where there is none.

    Raises:
        DataError: when the file is not a JSON object.
    """
    path = Path(str(image_dir)).resolve().parent / "dataset.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no text, or no JSON
        raise DataError(f"{path} is not valid JSON ({error}): correct it, or move it away.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not an object: correct it, or move it away.")
    return {key: content[key] for key in (*CHANNELS, CLASSES) if isinstance(content.get(key), dict)}


def write_lists(folder: Path, header: Mapping[str, Any], lists: Mapping[str, Sequence[Any]]) -> Path:
    """Writes ``folder/dataset.json`` in the form that :class:`scripts.data.Datalist` reads, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.json"
    path.write_text(json.dumps({**header, **lists}, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def class_names(header: dict[str, Any], num_classes: int) -> list[str] | None:
    """Names of the classes from "labels" of dataset.json, value to name or, as in nnU-Net, name to value.

    Raises:
        DataError: see :func:`check_literal`.
    """
    labels = header.get(CLASSES)
    if not isinstance(labels, dict):
        return None
    if not all(str(key).isdigit() for key in labels):
        labels = {str(value): name for name, value in labels.items()}
    names = [labels.get(str(value)) for value in range(1, num_classes + 1)]
    known = [name for name in names if isinstance(name, str)]
    check_literal(known)
    return known if len(known) == num_classes else None


def check_literal(names: Sequence[str]) -> None:
    """Raises DataError for a name that a config would take for an expression or a reference."""
    for name in names:
        if name.startswith(("$", "@", "%")):
            raise DataError(
                f"the class name {name!r} begins with a character of the config language: rename the class."
            )


def declared_modalities(header: dict[str, Any]) -> list[str]:
    """The channels' names in "modality" or "channel_names" of dataset.json; empty where there are none."""
    found = next((header[key] for key in CHANNELS if header.get(key)), None)
    return [str(name) for name in found.values()] if isinstance(found, dict) else []


def declared_ignore_value(header: dict[str, Any]) -> int | None:
    """The value of nnU-Net's label "ignore"; None where there is none."""
    labels = header.get(CLASSES)
    value = labels.get(IGNORE) if isinstance(labels, dict) else None
    return value if type(value) is int else None


def declared_values(header: dict[str, Any], num_classes: int) -> list[int] | None:
    """The label values that the classes had in the original files; None where they are the classes' numbers."""
    values = header.get(ORIGINAL)
    return values if isinstance(values, list) and len(values) == num_classes else None
