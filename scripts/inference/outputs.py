"""Outputs: where what is written about a case goes, inside the output folder whatever the case is called."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.folder_layout import default_name_formatter
from monai.data.utils import create_file_basename
from monai.transforms import MapTransform, SaveImage

from scripts.data import case_name
from scripts.errors import UserError
from scripts.files import sha256

from .writer import NiftiWriter

# What the file of an output ends in, where that is not its key.
POSTFIXES = {"pred": "seg", "mask": "seg"}


def below(path: str | Path, root: str | Path) -> str:
    """The folder of ``path`` relative to ``root``; "" where it lies elsewhere, or one of them names no folder."""
    folder = os.path.dirname(path)  # an image that comes from memory has a name and no folder
    relative = os.path.relpath(folder, root) if root and folder else "."
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


class SaveOutputsd(MapTransform):
    """Writes those of ``keys`` that a case has, in their order, as NIfTI in the geometry of its image.

    "pred" or "mask" becomes ``<case>_seg.nii.gz`` of uint8, or of uint16 where it comes as int32, and any other key
    ``<case>_<key>.nii.gz`` of float32.

    Args:
        keys: of (C, H, W, D) MetaTensors; the mask stands last, since a case that has one counts as complete.
        output_dir: made if missing.
        root: folder of the images, see :func:`output_path`.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path, root: str | Path = "") -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.output_dir = output_dir
        self.root = root

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            labels = np.uint16 if data[key].dtype == torch.int32 else np.uint8
            save = SaveImage(
                output_dir=self.output_dir,
                output_postfix=POSTFIXES.get(str(key), str(key)),
                output_dtype=labels if key in POSTFIXES else np.float32,
                resample=False,
                separate_folder=False,
                data_root_dir=str(self.root),
                print_log=False,
                writer=NiftiWriter,
                output_name_formatter=contained_name,
            )
            save(data[key])
        return dict(data)


def facts_of(path: str | Path) -> dict[str, Any]:
    """Where a file is, how large, and the SHA-256 of its content; its path alone if it is no file or cannot be read."""
    where = os.path.abspath(path)
    try:
        if os.path.isfile(where):  # reading a pipe would wait for ever
            return {"path": where, "bytes": os.path.getsize(where), "sha256": sha256(Path(where))}
    except OSError:
        pass
    return {"path": where}
