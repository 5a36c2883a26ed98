"""Cases: what is to be segmented, given as one file, a folder with subfolders, or a list."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.data import DataError, images_in, images_of
from scripts.data.folder import NIFTI_SUFFIXES

Case = dict[str, Any]
Source = str | Path | list[Any] | tuple[Any, ...]
LIST_SUFFIXES = (".txt", ".json")


def cases_of(
    source: Source,
    *,
    output_dir: str | Path = "",
    in_channels: int = 1,
    modalities: Sequence[str] | str | None = None,
) -> list[Case]:
    """The cases that ``source`` stands for, as ``{"image": path or list of paths}``.

    Args:
        source: one of

            - a NIfTI file; with several channels the other files of its case are found beside it;
            - a folder, with all its subfolders; hidden ones and ``output_dir`` are left out;
            - a list of files, of which a list in the list is one case with a file per channel;
            - a .json file with such a list, whose entries may also be ``{"image": ...}``, or a .txt file with a path in
              each line. Relative paths in it are relative to its folder.
        output_dir: of the masks, which must not be taken for images.
        in_channels, modalities: see :func:`~scripts.data.images_in`.

    Raises:
        DataError: when there is none of these, or no case in it.
    """
    if isinstance(source, (list, tuple)):
        return _listed(source, folder=Path(), origin="input_dir")
    path = Path(source)
    channels: dict[str, Any] = {"in_channels": in_channels, "modalities": modalities}
    if path.name.lower().endswith(LIST_SUFFIXES):
        return _listed(_read(path), folder=path.parent, origin=str(path))
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        if path.is_dir() or not path.exists():
            return _of_folder(path, output_dir=output_dir, **channels)
        raise DataError(
            f"input_dir is {path}; it is a folder of NIfTI images, one such image (.nii.gz or .nii), or a list of them "
            "(.txt, .json)."
        )
    beside = images_in(path.parent, subfolders=True, **channels) if in_channels > 1 and path.is_file() else []
    return next(([case] for case in beside if str(path) in images_of(case)), [{"image": str(path)}])


def root_of(source: Source) -> str:
    """The folder that outputs keep their place to: the folder given, or the one that all files given lie in."""
    if not isinstance(source, (list, tuple)) and not Path(source).name.lower().endswith(
        (*LIST_SUFFIXES, *NIFTI_SUFFIXES)
    ):
        return str(source)
    try:
        files = [file for case in cases_of(source) for file in images_of(case)]
    except DataError:  # said where the cases are read
        return ""
    return os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])


def _of_folder(folder: Path, *, output_dir: str | Path, **options: Any) -> list[Case]:
    cases: list[Case] = []
    seen = {Path(output_dir).resolve()} if output_dir else set()  # links may lead round in circles
    for where, names, files in os.walk(folder, followlinks=True):
        inside = Path(where)
        if inside.resolve() in seen:
            names.clear()
            continue
        seen.add(inside.resolve())
        names[:] = sorted(name for name in names if not name.startswith("."))
        # A folder or a broken link of that name is to be reported as a case that failed.
        images = [name for name in (*files, *names) if name.lower().endswith(NIFTI_SUFFIXES) and name[0] != "."]
        names[:] = [name for name in names if name not in images]
        if images:
            cases += images_in(inside, subfolders=True, **options)
    # Of a folder without any image images_in says what else is there.
    return cases or images_in(folder, **options)


def _read(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        listed = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a list of images ({error}): correct input_dir.") from error
    if not isinstance(listed, list):
        raise DataError(f'{path} is no list: write the paths of the images as ["a.nii.gz", "b.nii.gz"].')
    return [entry for entry in listed if not isinstance(entry, str) or entry.strip()]


def _listed(entries: Sequence[Any], *, folder: Path, origin: str) -> list[Case]:
    cases = []
    for entry in entries:
        image = entry.get("image") if isinstance(entry, dict) else entry
        files = image if isinstance(image, (list, tuple)) and image else [image]
        if not all(isinstance(file, (str, Path)) for file in files):
            raise DataError(f"{origin} lists {entry!r}; an entry is a path, or a list of one path per channel.")
        paths = [str(folder / str(file).strip()) for file in files]
        cases.append({"image": paths[0] if len(paths) == 1 else paths})
    if not cases:
        raise DataError(f"{origin} lists no image: give at least one.")
    return cases
