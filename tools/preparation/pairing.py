"""Pairing: which files of two folders are the channels of one case and its label, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from scripts.data import DataError
from scripts.data.contents import Contents, inspect
from scripts.data.folder import IMAGE_SUFFIX, LABEL_SUFFIX, cut_ending, masks_among

from .volumes import is_nifti, structures_in, volume_name, volumes_in

CHANNEL_SUFFIX = re.compile(r"_(\d{4})$")  # nnU-Net: case_0000, case_0001, ...
SEPARATOR = re.compile(r"[_\-. ]")  # between the parts of a name
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
        labels = volumes_in(label_dir, argument="--label_dir", labels=True)
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
    # Masks of one case lie in a folder of its name; other folders are none of our business.
    others = {
        path
        for path in labels
        if structures_in(path) and not {p := name_of[path], LABEL_SUFFIX.sub("", p)} & set(by_name)
    }
    left_out |= dict.fromkeys(others, "folder of no case")
    labels = [path for path in labels if path not in others]
    matched = match_labels(set(by_name), labels, name_of=name_of, images=images)
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
            values = ", ".join(f"{value:g}" for value in found.mask_values[:LISTED])
            raise DataError(
                f"{case.images[0]} is called after {stem!r} and looks like its label (values {values}), but is none by "
                f'its name: give --label_pattern "*{case.name[len(stem) :]}", or take it out.'
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
        print(f"; unlabeled: {shortened(without)}" if without else "", end="")
    print(f"; left out: {_counted(left_out)}" if left_out else "")


def _counted(left_out: Mapping[Path, str]) -> str:
    """Files that are left out, by the reason."""
    reasons: dict[str, list[str]] = {}
    for path, reason in sorted(left_out.items()):
        reasons.setdefault(reason, []).append(path.name)
    return "; ".join(f"{shortened(names)} ({reason})" for reason, names in reasons.items())


def shortened(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


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


def patterns_between(images: Sequence[Path], labels: Sequence[Path]) -> str:
    """The options that pair most labels with an image; those of the advice where none pair more than half."""

    def shared(names: Sequence[str]) -> list[str]:
        first = names[0] if names else ""
        ends = [found.span() for found in SEPARATOR.finditer(first)]
        parts = product(["", *(first[:end] for _, end in ends)], ["", *(first[start:] for start, _ in ends)])
        patterns = [f"{before}*{after}" for before, after in parts if "*" not in before + after]
        return [pattern for pattern in patterns if all(map(_fits(pattern), names))]

    names, label_names = [volume_name(path) for path in images], [volume_name(path) for path in labels]
    best, least = "", len(labels) / 2
    for image, label in sorted(product(shared(names), shared(label_names)), key=lambda pair: len("".join(pair))):
        inner = {_inner(name, image) for name in names}
        if (count := sum(_inner(name, label) in inner for name in label_names)) > least:
            best, least = f'give --image_pattern "{image}" --label_pattern "{label}"', count
    return best or 'for others give --image_pattern and --label_pattern, such as "IMG_*" and "SEG_*"'


def match_labels(
    cases: set[str], labels: Sequence[Path], *, name_of: Mapping[Path, str], images: Sequence[Path] = ()
) -> dict[str, Path]:
    """The label of every case by its name; ``name_of`` has the names of the labels, ``images`` serve for advice."""
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
            raise DataError(
                f"{matched[candidates[0]]} and {path} are both labels of {candidates[0]!r}: remove one, or give "
                "--label_pattern (of BIDS --label_name)."
            )
        matched[candidates[0]] = path
    if homeless:
        listed = ", ".join(str(path) for path in homeless[:LISTED])
        raise DataError(
            f"{len(homeless)} of {len(labels)} labels have no image ({listed}); images are called "
            f"{', '.join(sorted(cases)[:LISTED])}: names must be equal, or differ by a suffix such as _seg or _label; "
            f"{patterns_between(images, labels)}."
        )
    return matched
