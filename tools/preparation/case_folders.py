"""Case folders: the layout in which each case is a folder with its image(s) and perhaps its label."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.data import DataError

from .dicom import is_dicom
from .pairing import LISTED, CaseFiles
from .volumes import NoVolumeError, structures_in, volume_name, volumes_in

# Names of a label's file or folder, in the folder of its case.
LABEL_NAME = re.compile(r"(.*[_\-.])?(seg|segmentations?|labels?|labelmap|masks?|gt|manual)$", re.IGNORECASE)


def find_case_folders(
    case_dir: str | Path, *, modalities: Sequence[str] | None = None, label_name: str | None = None
) -> list[CaseFiles]:
    """The cases of a folder in which each case is a folder with its image(s) and perhaps its label, sorted by name.

    The folder's name is the case's. Folders without volumes are looked into: ``HGG/case/...``, ``LGG/case/...``.

    Args:
        case_dir: folder of the cases' folders.
        modalities: names of the image files, or what they end in behind ``_`` or ``-``, in the order of the channels:
            ``[lgemri]``, ``[flair,t1]``. None if each folder has one image.
        label_name: the same of the label; None for what is called label, seg, mask, ... or ends so.

    Raises:
        DataError: when a folder lacks a channel, has several files for one, or there is no case.
    """
    root = Path(str(case_dir))
    if not root.is_dir():
        raise DataError(f"--case_dir is {str(root)!r}, which is not a folder: give the folder of the cases' folders.")
    found: dict[str, CaseFiles] = {}
    for folder, files in _folders_with_volumes(root):
        files = [
            *files,
            *(sub for sub in sorted(folder.iterdir()) if structures_in(sub) and _is_called(sub, label_name)),
        ]
        labels = [path for path in files if _is_called(path, label_name)]
        if len(labels) > 1:
            raise DataError(f"{folder} has the labels {labels[0].name} and {labels[1].name}: give --label_name.")
        images = [path for path in files if path not in labels]
        label = labels[0] if labels else None
        case = CaseFiles(folder.name, _channels(folder, images, modalities), label, of_folder=True)
        if case.name in found:
            raise DataError(f"{found[case.name].images[0].parent} and {folder} have the same name: rename one.")
        found[case.name] = case
    if not found:
        raise DataError(f"--case_dir {root} has no folder with a volume: for all images in one, give --image_dir.")
    return [found[name] for name in sorted(found)]


def _folders_with_volumes(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        series = [folder] if any(is_dicom(path) for path in folder.iterdir()) else []
        try:
            yield folder, series + volumes_in(folder, argument="--case_dir")
        except NoVolumeError:
            yield from [(folder, series)] if series else _folders_with_volumes(folder)


def _is_called(path: Path, name: str | None) -> bool:
    """Whether a file is that of ``name``, or ends in it behind _ or -; for None, whether it is called as labels are."""
    own = volume_name(path).lower()
    if name is None:
        return LABEL_NAME.fullmatch(own) is not None
    return own == str(name).lower() or own.endswith((f"_{name}".lower(), f"-{name}".lower()))


def _channels(folder: Path, images: Sequence[Path], modalities: Sequence[str] | None) -> tuple[Path, ...]:
    """The image files of a case in the order of its channels."""
    if not modalities:
        if len(images) != 1:
            named = ", ".join(path.name for path in images[:LISTED]) or "none"
            raise DataError(
                f"{folder} has {len(images)} images ({named}); expected is one: name those of a case in the order of "
                '--modalities, such as "[flair,t1]", and its label by --label_name.'
            )
        return tuple(images)
    channels = []
    for modality in modalities:
        matching = [path for path in images if _is_called(path, str(modality))]
        if len(matching) != 1:
            raise DataError(
                f"{folder} has {len(matching)} images called {modality!r} among "
                f"{', '.join(path.name for path in images[:LISTED]) or 'none'}; expected is one: correct --modalities."
            )
        channels += matching
    return tuple(channels)
