"""BIDS: the Brain Imaging Data Structure: images of subjects and sessions, and labels among the derivatives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scripts.data import DataError

from .pairing import LISTED, CaseFiles, group_channels, match_labels
from .volumes import is_nifti, volume_name

# A subject's scans stay in one list.
PATIENT = "^(sub-[A-Za-z0-9]+)"
ENTITY = re.compile(r"(?:^|_)((?:sub|ses|run)-[A-Za-z0-9]+)(?=_)")
LABELS = ("dseg", "mask", "seg", "label", "labels", "roi")


def is_bids(folder: Path) -> bool:
    """Whether a folder has subfolders ``sub-...`` with NIfTI files in them."""
    return folder.is_dir() and any(_files(folder))


def find_bids(
    image_dir: Path, label_dir: Path, *, modalities: Sequence[str] | None = None, label_name: str | None = None
) -> list[CaseFiles]:
    """The cases of a BIDS data set, sorted: one for each subject, session and run. Prints how many have a label.

    Args:
        image_dir: with ``sub-01/anat/sub-01_T1w.nii.gz``, ...
        label_dir: with files of the same subject, session and run, such as a folder of the derivatives.
        modalities: what the images' names end in, in the order of the channels: ``[T1w,FLAIR]``; not needed where all
            end alike.
        label_name: what the labels' names end in; by default ``dseg``, ``mask``, ...

    Raises:
        DataError: when a case lacks a channel, or has several files for one or for its label.
    """
    derived = label_dir.resolve()
    images = [
        path for path in _files(image_dir) if derived not in path.resolve().parents or derived == image_dir.resolve()
    ]
    endings = Counter(volume_name(path).rpartition("_")[2] for path in images)
    for label in LABELS if label_name is None else (label_name.rpartition("_")[2],):
        endings.pop(label, None)
    if not modalities and len(endings) != 1:
        raise DataError(
            f"{image_dir} has images of several kinds ({', '.join(f'{n} {end}' for end, n in endings.most_common())}): "
            'give --modalities, such as "[T1w]" or "[T1w,FLAIR]".'
        )
    channels = [str(name) for name in modalities or endings]
    name_of = {path: "_".join(ENTITY.findall(volume_name(path))) for path in images}
    of_channels = {path: end for path in images for end in channels if volume_name(path).endswith(f"_{end}")}
    cases = group_channels(
        list(of_channels), [], channels, name_of={path: f"{name_of[path]}_{end}" for path, end in of_channels.items()}
    )
    ends = tuple(f"_{end}" for end in ((label_name,) if label_name else LABELS))
    labels = [path for path in _files(label_dir) if volume_name(path).endswith(ends)]
    label_names = {path: "_".join(ENTITY.findall(volume_name(path))) for path in labels}
    left = [str(path) for path in labels if label_names[path] not in cases]
    matched = match_labels(set(cases), [p for p in labels if label_names[p] in cases], name_of=label_names)
    found = [CaseFiles(name, cases[name], matched.get(name)) for name in sorted(cases)]
    print(
        f"{image_dir}: {len(found)} cases of BIDS, {len(matched)} with a label of {label_dir}"
        + (f"; labels of no case: {', '.join(left[:LISTED])}" if left else "")
    )
    return found


def _files(folder: Path) -> list[Path]:
    """The NIfTI files of the subjects below a folder, without those of its derivatives, sorted."""
    subjects = (path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.startswith("sub-"))
    return [path for subject in subjects for path in sorted(subject.rglob("sub-*")) if is_nifti(path)]
