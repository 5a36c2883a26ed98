"""Folder: the cases in a folder of NIfTI files, with one file each or one per channel, and their names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .problems import DataError

Case = dict[str, Any]
NIFTI_SUFFIXES = (".nii.gz", ".nii")
# What stands between a case's name and that of a channel.
SEPARATORS = "_-"
# What people append to a case's name for its label, or for its image.
LABEL_SUFFIX = re.compile(r"[_\-.](seg|segmentation|label|labels|labelmap|mask|gt|manual)$", re.IGNORECASE)
IMAGE_SUFFIX = re.compile(r"[_\-.](img|image|scan|volume|ct|mr|mri)$", re.IGNORECASE)
# Volumes of other formats, which inference does not read and must not pass over in silence.
OTHER_SUFFIXES = set(".nrrd .nhdr .mha .mhd .dcm .img .hdr .mgz .mgh .minc .mnc .npy .h5".split())


def case_name(path: str | Path) -> str:
    """The name of a case in every output: the file name of its image without the NIfTI suffix."""
    name = Path(path).name
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def masks_among(names: Iterable[str]) -> set[str]:
    """The names in a folder that are another name with the suffix of a label: a_seg beside a.

    Example:
        >>> sorted(masks_among(["a", "a_seg", "b_image", "b-label", "c_seg"]))
        ['a_seg', 'b-label']
    """
    names = set(names)
    stems = {IMAGE_SUFFIX.sub("", name) for name in names}
    return {name for name in names if LABEL_SUFFIX.search(name) and LABEL_SUFFIX.sub("", name) in names | stems}


def images_in(
    directory: str | Path,
    *,
    in_channels: int = 1,
    modalities: Sequence[str] | str | None = None,
    subfolders: bool = False,
) -> list[Case]:
    """The NIfTI files of a folder as a list of ``{"image": path}``, sorted by name, without hidden files.

    Of a case with one file per channel the paths are a list, in the order of the channels. A file of it that is missing
    is listed as if it were there, so that the case is reported with the name of what it lacks. What else looks like a
    volume, masks that are called after an image beside them (``a_seg``, ``a-label``), and subfolders are named in a
    warning.

    Args:
        directory: folder to look in.
        in_channels: channels that the network takes; above 1, ``a_0000.nii.gz``, ``a_0001.nii.gz``, ... are those of
            case ``a``, as in nnU-Net.
        modalities: instead of these numbers, what the channels' files end in behind ``_`` or ``-``:
            ``["flair", "t1"]``, in upper or lower case.
        subfolders: whether the caller looks into subfolders itself, so that none needs to be named.

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
    others = [
        p.name
        for p in entries
        if p not in files and (p.is_dir() and not subfolders or p.is_file() and p.suffix.lower() in OTHER_SUFFIXES)
    ]
    left_out = f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}"
    convert = "convert volumes to NIfTI, and move those of subfolders up"
    if not files:
        found = f" but {left_out}: {convert}" if others else ": give the folder of your images as --input_dir"
        raise DataError(f"{folder} holds no .nii.gz or .nii file{found}.")
    if others:
        logging.getLogger(__name__).warning("%s: %s not segmented; %s", folder, left_out, convert)
    endings = _endings(in_channels, modalities)
    # A channel may be called so, too.
    masks = {name for name in masks_among(map(case_name, files)) if cut_ending(name, endings) is None}
    if masks:
        files = [path for path in files if case_name(path) not in masks]
        logging.getLogger(__name__).warning(
            "%s: %s not segmented, since called like masks of images beside them; rename them if they are images",
            folder,
            ", ".join(sorted(masks)[:5]) + (", ..." if len(masks) > 5 else ""),
        )
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
    """Splits a name into case, separator and the longest ending that fits (t1_ce, not ce); None if none fits.

    Upper and lower case are the same, except where endings differ in nothing else.
    """
    for ending in sorted(endings, key=lambda ending: (len(ending), name.endswith(ending)), reverse=True):
        for separator in separators:
            end = len(name) - len(separator + ending)
            if end > 0 and name[end:].lower() == (separator + ending).lower():
                return name[:end], separator, ending
    return None


def _endings(in_channels: int, modalities: Sequence[str] | str | None) -> list[str]:
    """The endings of the names of a case's files, one per channel; empty if each file is a case."""
    if modalities is None:
        return [f"{channel:04d}" for channel in range(in_channels)] if in_channels > 1 else []
    names = [str(name) for name in (modalities.split(",") if isinstance(modalities, str) else modalities)]
    if len(names) != in_channels or len(set(names)) != len(names):
        raise DataError(
            f"modalities is {modalities!r} and the network takes {in_channels} channel(s): name each of them once, in "
            "the order of the training."
        )
    return names
