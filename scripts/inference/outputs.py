"""Outputs: where what is written about a case goes, inside the output folder whatever the case is called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.data.folder_layout import default_name_formatter
from monai.data.utils import create_file_basename

from scripts.data import case_name
from scripts.errors import UserError

# What a folder of masks is locked for.
MASKS = "masks"


def below(path: str | Path, root: str | Path) -> str:
    """The folder of ``path`` relative to ``root``; "" where it lies elsewhere, or there is no root."""
    relative = os.path.relpath(os.path.dirname(path), root) if root else "."
    return "" if relative.split(os.sep)[0] in ("..", ".") or os.path.isabs(relative) else relative


def name_of(image: str | Path, root: str | Path = "") -> str:
    """What a case is called in tables and logs: its file name without suffix, behind the folders below ``root``."""
    return (Path(below(image, root)) / case_name(image)).as_posix()


def output_path(
    image: str | Path, postfix: str, *, output_dir: str | Path, root: str | Path = "", ending: str = ".nii.gz"
) -> Path:
    """Where an output of an image goes: ``<output_dir>/<folders below root>/<case>_<postfix>.nii.gz``.

    MONAI's own rule for the name, by which SaveImaged writes it with ``root`` as its ``data_root_dir``.
    """
    name = create_file_basename(postfix, Path(image).name, str(output_dir), separate_folder=False, makedirs=False)
    return Path(output_dir) / below(image, root) / (Path(name).name + ending)


def contained_name(meta: Mapping[str, Any], saver: Any) -> dict[str, Any]:
    """The name of an output for ``SaveImaged(output_name_formatter=...)``: MONAI's own, if it is safe.

    MONAI names an output after the image's path below ``data_root_dir``; of an image elsewhere only the last part is
    taken, so that ``../`` or an absolute path in a dataset.json leads nowhere else. What is left is an output folder
    that somebody else filled, an unpacked archive say, with a link where the output would be: writing would go through
    it.

    Args:
        meta: of the image, with its path as "filename_or_obj".
        saver: the ``SaveImage`` that asks.

    Returns:
        The arguments of the saver's folder layout.

    Raises:
        UserError: when the output would not be a file of its own in the output folder.
    """
    names = default_name_formatter(dict(meta), saver)
    layout = saver.folder_layout
    image, root = names["subject"], layout.data_root_dir
    if root and not below(image, root):
        names["subject"] = Path(image).name
    folder = Path(layout.output_dir)
    path = output_path(image, layout.postfix, output_dir=folder, root=root, ending=layout.ext)
    if path.is_symlink() or path.parent.resolve() != folder.resolve() / below(image, root):
        raise UserError(f"{path} is a link, or lies outside {folder}: remove it, or choose another output_dir.")
    return names
