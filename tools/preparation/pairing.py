"""Pairing: which files of two folders are the channels of one case and its label, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.data import DataError
from scripts.data.contents import Contents, inspect
from scripts.data.folder import IMAGE_SUFFIX, LABEL_SUFFIX, cut_ending, masks_among

from .dicom import is_dicom
from .volumes import NoVolumeError, is_nifti, volume_name, volumes_in

CHANNEL_SUFFIX = re.compile(r"_(\d{4})$")  # nnU-Net: case_0000, case_0001, ...
# Names of a whole file, in the folder of its case.
LABEL_NAME = re.compile(r"(.*[_\-.])?(seg|segmentation|label|labels|labelmap|mask|gt|manual)$", re.IGNORECASE)
LISTED = 5


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case: one image per channel, in order, and the label if there is one.

    ``of_folder``: whether the case is called after its folder, where files of many cases may be called alike.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    of_folder: bool = False


def find_cases(
    image_dir: str | Path,
    label_dir: str | Path | None = None,
    *,
    modalities: Sequence[str] | None = None,
    numbered: bool | None = None,
    argument: str = "--image_dir",
    image_pattern: str | None = None,
    label_pattern: str | None = None,
) -> list[CaseFiles]:
    """The cases of a folder of images and a folder of labels, sorted by name. Prints what was paired and what was not.

    Layouts, recognised by the names:
    - equal names: ``imagesTr/a.nii.gz`` and ``labelsTr/a.nii.gz`` (Decathlon), or a DICOM folder ``a``;
    - nnU-Net: ``a_0000.nii.gz``, ``a_0001.nii.gz``, ... are the channels of case ``a``;
    - suffixes: ``a_seg``, ``a-label``, ``a_mask``, ... belong to ``a`` or ``a_image``, also within one folder;
    - ``modalities``: ``a_flair``, ``a_t1``, ... or ``a-flair``, ... are the channels of ``a`` in the given order;
    - patterns: ``IMG_*`` and ``SEG_*``, where ``*`` is what image and label have in common.

    Args:
        image_dir: folder of the images.
        label_dir: folder of the labels, which may be the same; None where there are none.
        modalities: suffixes of the channels of a case.
        numbered: whether the names end in nnU-Net's channel numbers; None goes by the names of images and labels.
        argument: that gave ``image_dir``, for the messages.
        image_pattern: of the images' names without their suffix; others are left out.
        label_pattern: of the labels' names.

    Raises:
        DataError: when a label has no image, two files claim the same place, a case lacks a channel, or an image is a
            mask by its content.
    """
    images = volumes_in(image_dir, argument=argument)
    labels: list[Path] = []
    if label_dir is not None:
        labels = volumes_in(label_dir, argument="--label_dir")
        if Path(str(image_dir)).resolve() == Path(str(label_dir)).resolve():
            fits = _fits(label_pattern) if label_pattern else LABEL_SUFFIX.search
            labels = [path for path in labels if fits(volume_name(path))]
            images = [path for path in images if path not in labels]
    left_out: dict[Path, str] = {}
    if image_pattern:
        kept = [path for path in images if _fits(image_pattern)(volume_name(path))]
        left_out |= dict.fromkeys(set(images) - set(kept), f"not called {image_pattern}")
        images = kept
    if label_pattern:
        kept = [path for path in labels if _fits(label_pattern)(volume_name(path))]
        left_out |= dict.fromkeys(set(labels) - set(kept), f"not called {label_pattern}")
        labels = kept
    named = {name: path for path in images if (name := volume_name(path))}
    channels = [str(name) for name in modalities or ()]
    masks = {named[name] for name in masks_among(named) if cut_ending(name, channels) is None}
    left_out |= dict.fromkeys(masks, "called like the mask of an image beside it")
    images = [path for path in images if path not in masks]
    if not images:
        raise DataError(f"{argument} {image_dir} holds {_counted(left_out) or 'labels alone'}: correct the folder.")
    name_of = {path: _inner(volume_name(path), image_pattern) for path in images}
    name_of |= {path: _inner(volume_name(path), label_pattern) for path in labels if path not in name_of}
    by_name = group_channels(images, labels, modalities, numbered, name_of=name_of)
    matched = match_labels(set(by_name), labels, name_of=name_of)
    cases = [CaseFiles(name, by_name[name], matched.get(name)) for name in sorted(by_name)]
    check_no_masks(cases)
    _print_pairing(cases, image_dir, label_dir, left_out)
    return cases


def check_no_masks(cases: Sequence[CaseFiles]) -> None:
    """Raises DataError when an unlabeled case is called after another, such as ``a_roi``, and is a mask by content."""
    names = sorted(case.name for case in cases)
    for case in cases:
        if case.label is not None or len(case.images) > 1 or not is_nifti(case.images[0]):
            continue
        stem = next((n for n in names if case.name.startswith(n) and case.name[len(n) : len(n) + 1] in ("_", "-")), "")
        found = inspect((str(case.images[0]), False)) if stem else None
        if isinstance(found, Contents) and found.mask_values:
            raise DataError(
                f"{case.images[0]} is called after {stem!r} and looks like its label (values "
                f"{', '.join(map(str, found.mask_values[:LISTED]))}), but is none by its name: give --label_pattern "
                f'"*{case.name[len(stem) :]}", or take it out.'
            )


def _fits(pattern: str) -> Callable[[str], object]:
    return re.compile(_regex(pattern)).fullmatch


def _inner(name: str, pattern: str | None) -> str:
    """What stands for the ``*`` of a pattern in a name that fits; without a pattern, the name."""
    found = re.fullmatch(_regex(pattern), name) if pattern else None
    return found.group(1) if found else name


def _regex(pattern: str) -> str:
    if str(pattern).count("*") != 1:
        raise DataError(
            f"the pattern {pattern!r} must have one *, which stands for what image and label have in common, such as "
            '"IMG_*".'
        )
    before, after = str(pattern).split("*")
    return f"{re.escape(before)}(.+){re.escape(after)}"


def _print_pairing(
    cases: Sequence[CaseFiles], image_dir: str | Path, label_dir: str | Path | None, left_out: Mapping[Path, str]
) -> None:
    files = sum(len(case.images) for case in cases)
    print(f"{image_dir}: {len(cases)} cases" + (f" of {files} images" if files != len(cases) else ""), end="")
    if label_dir is not None:
        without = [case.name for case in cases if case.label is None]
        print(f", {len(cases) - len(without)} with a label of {label_dir}", end="")
        print(f"; unlabeled: {_shortened(without)}" if without else "", end="")
    print(f"; left out: {_counted(left_out)}" if left_out else "")


def _counted(left_out: Mapping[Path, str]) -> str:
    """Files that are left out, by the reason."""
    reasons: dict[str, list[str]] = {}
    for path, reason in sorted(left_out.items()):
        reasons.setdefault(reason, []).append(path.name)
    return "; ".join(f"{_shortened(names)} ({reason})" for reason, names in reasons.items())


def _shortened(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


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


def group_channels(
    images: Sequence[Path],
    labels: Sequence[Path],
    modalities: Sequence[str] | None,
    numbered: bool | None = None,
    *,
    name_of: Mapping[Path, str],
) -> dict[str, tuple[Path, ...]]:
    """The image files of every case by its name, in the order of the channels; ``name_of`` has those of the files."""
    names = [name_of[path] for path in images]
    if modalities:
        order = {str(suffix): position for position, suffix in enumerate(modalities)}
        parts = [cut_ending(name, list(order)) for name in names]
        unknown = [str(path) for path, cut in zip(images, parts) if cut is None]
        if unknown:
            raise DataError(
                f"{unknown[0]} does not end in _ or - and one of the modalities {', '.join(order)}: correct "
                "--modalities."
            )
        keys = [(cut[0], order[cut[2]]) for cut in parts if cut is not None]
    elif is_nnunet(names, {name_of[path] for path in labels}) if numbered is None else numbered:
        plain = [str(path) for path, name in zip(images, names) if not CHANNEL_SUFFIX.search(name)]
        if plain:
            raise DataError(f"{plain[0]} has no channel number such as _0000, as other images have: rename it.")
        keys = [(CHANNEL_SUFFIX.sub("", name), int(name[-4:])) for name in names]
    else:
        keys = [(name, 0) for name in names]
    count = len(modalities) if modalities else 1 + max(channel for _, channel in keys)
    cases: dict[str, dict[int, Path]] = {}
    for (case, channel), path in zip(keys, images):
        channels = cases.setdefault(case, {})
        if channel in channels:
            raise DataError(f"{channels[channel]} and {path} are the same channel of case {case!r}: remove one.")
        channels[channel] = path
    for case, channels in cases.items():
        if missing := sorted(set(range(count)) - set(channels)):
            what = modalities[missing[0]] if modalities else f"{missing[0]:04d}"
            raise DataError(f"case {case!r} has no image {what} and others have {count}: add it, or remove the case.")
    return {case: tuple(channels[i] for i in range(count)) for case, channels in cases.items()}


def are_numbered(cases: Sequence[CaseFiles]) -> bool:
    """Whether the images of cases have nnU-Net's channel numbers behind the case's name."""
    return all(volume_name(case.images[0]).endswith(f"{case.name}_0000") for case in cases)


def is_nnunet(names: Sequence[str], label_names: set[str]) -> bool:
    """Whether image names end in nnU-Net's channel number; a number that labels repeat is part of the name."""
    if not all(CHANNEL_SUFFIX.search(name) for name in names) or label_names & set(names):
        return False
    return not label_names or bool(label_names & {CHANNEL_SUFFIX.sub("", name) for name in names})


def match_labels(cases: set[str], labels: Sequence[Path], *, name_of: Mapping[Path, str]) -> dict[str, Path]:
    """The label of every case that has one, by the case's name; ``name_of`` has the names of the labels."""
    stems: dict[str, list[str]] = {}
    for case in cases:
        stems.setdefault(IMAGE_SUFFIX.sub("", case), []).append(case)
    matched: dict[str, Path] = {}
    homeless = []
    for path in labels:
        name = name_of[path]
        stem = LABEL_SUFFIX.sub("", name)
        candidates = [name] if name in cases else [stem] if stem in cases else stems.get(stem, [])
        if not candidates:
            homeless.append(path)
            continue
        if len(candidates) > 1:
            raise DataError(f"{path} could belong to {' or '.join(sorted(candidates))}: rename one of the images.")
        if candidates[0] in matched:
            raise DataError(f"{matched[candidates[0]]} and {path} are both labels of {candidates[0]!r}: remove one.")
        matched[candidates[0]] = path
    if homeless:
        listed = ", ".join(str(path) for path in homeless[:LISTED])
        raise DataError(
            f"{len(homeless)} of {len(labels)} labels have no image ({listed}); images are called "
            f"{', '.join(sorted(cases)[:LISTED])}: names must be equal, or differ by a suffix such as _seg or _label. "
            'For others, give --image_pattern and --label_pattern, such as "IMG_*" and "SEG_*".'
        )
    return matched
