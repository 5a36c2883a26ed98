"""Continuing: a run over a folder leaves out the cases that an earlier run with the same settings has finished."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data.utils import create_file_basename

from scripts.data import DataError, images_of
from scripts.files import replacing

RECORD = "inference_settings.json"


def unfinished(
    cases: list[dict[str, Any]],
    *,
    output_dir: str | Path,
    weights: str | Sequence[str],
    settings: Mapping[str, Any],
    input_dir: str | Path | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """The cases of a folder that still have to be segmented.

    The first run writes its settings to ``<output_dir>/inference_settings.json``. A case is finished when its mask,
    ``<case>_seg.nii.gz``, which is written last and atomically, is not older than that file, than the image and than
    the weights: a new image, newly trained weights, or masks of unknown settings are segmented again.

    Args:
        cases: dictionaries with "image", a path or a list of them.
        output_dir: folder of the masks, made if missing.
        weights: file of weights, or several.
        settings: whatever else decides how the masks look, by the names of the ids.
        input_dir: folder of the images, recorded with the settings: another may have cases of the same names.
        overwrite: segment all cases anew.

    Returns:
        Those of ``cases`` that are not finished, in their order.

    Raises:
        DataError: when an earlier run had other settings, left masks, and ``overwrite`` is off, or when the images lie
            in ``output_dir`` itself, where masks would be taken for images.
    """
    folder = Path(output_dir)
    if any(folder.resolve() == Path(path).parent.resolve() for case in cases for path in images_of(case)):
        raise DataError(f"output_dir {folder} is the folder of the images: choose another, to keep masks apart.")
    record = folder / RECORD
    wanted = {name: plain(value) for name, value in settings.items()}
    if input_dir is not None:
        wanted["input_dir"] = str(Path(input_dir).resolve())
    # A run that ended before its first mask has left nothing that others would be mixed with.
    begun = any(folder.glob("*_seg.nii.gz"))
    earlier = _read(record) if begun and not overwrite else None
    if earlier is None:
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(wanted, indent=4) + "\n", encoding="utf-8")
        return cases
    changed = [name for name in sorted({*wanted, *earlier}) if wanted.get(name) != earlier.get(name)]
    if changed:
        listed = ", ".join(f"{name} was {earlier.get(name)} and is {wanted.get(name)}" for name in changed)
        raise DataError(
            f"{folder} holds masks of a run with other settings ({listed}): choose another output_dir, or set "
            "overwrite to true to segment all cases anew."
        )
    paths = [weights] if isinstance(weights, str) else list(weights)
    newest = max(_time(path) for path in (str(record), *paths))
    left = [case for case in cases if not _finished(case, folder, newest)]
    if len(left) < len(cases):
        logging.getLogger(__name__).info(
            "%d of %d cases are finished in %s and left out; --overwrite true segments them anew",
            len(cases) - len(left),
            len(cases),
            folder,
        )
    return left


def _finished(case: Mapping[str, Any], folder: Path, newest: int) -> bool:
    files = images_of(case)
    # MONAI's own rule for the name, by which SaveImaged wrote it.
    mask = create_file_basename("seg", str(files[0]), str(folder), separate_folder=False, makedirs=False) + ".nii.gz"
    return _time(mask) >= max([newest, *map(_time, files)])


def _time(path: str | os.PathLike) -> int:
    """When a file was last written, in ns; 0 if there is none, as of a name that is too long for a file."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _read(record: Path) -> dict[str, Any] | None:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none, or cut off: as if there had been no earlier run
        return None


def plain(value: Any) -> Any:
    """``value`` as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))
