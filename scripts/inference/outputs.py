"""Outputs: keeps what is written about a case inside the output folder, whatever the case is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.data.folder_layout import default_name_formatter

from scripts.errors import UserError


def contained_name(meta: Mapping[str, Any], saver: Any) -> dict[str, Any]:
    """The name of an output for ``SaveImaged(output_name_formatter=...)``: MONAI's own, if it is safe.

    MONAI names an output after the last part of the image's path, so that ``../`` or an absolute path in a dataset.json
    leads nowhere else. What is left is an output folder that somebody else filled, an unpacked archive say, with a
    link where the output would be: writing would go through it.

    Args:
        meta: of the image, with its path as "filename_or_obj".
        saver: the ``SaveImage`` that asks.

    Returns:
        The arguments of the saver's folder layout.

    Raises:
        UserError: when the output would not be a file of its own directly in the output folder.
    """
    names = default_name_formatter(dict(meta), saver)
    path = Path(saver.folder_layout.filename(**names))
    folder = Path(saver.folder_layout.output_dir)
    if path.is_symlink() or path.resolve().parent != folder.resolve():
        raise UserError(f"{path} is a link, or lies outside {folder}: remove it, or choose another output_dir.")
    return names
