"""Data set: writes dataset.json for a folder of images and a folder of labels, and converts what is not NIfTI.

python -m scripts prepare --image_dir images --label_dir labels --output_dir data --labeled 6
python -m scripts prepare --case_dir cases --output_dir data --labeled 6
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.data import DataError
from tools.command_line import run_command

from .bids import PATIENT, find_bids, is_bids
from .case_folders import find_case_folders
from .convert import Converter
from .declared import CHANNELS, CLASSES, ORIGINAL, check_literal, declared_beside, write_lists
from .pairing import CaseFiles, are_numbered, find_cases
from .segments import has_segments, numbering, say_overlaps, segment_names
from .splits import Split, fold_splits, split_cases
from .summary import check_class_names, classes, counts, out_of_line, separated
from .volumes import check_label_map, original_values


def make_dataset(
    *,
    output_dir: str,
    image_dir: str | None = None,
    label_dir: str | None = None,
    case_dir: str | None = None,
    label_name: str | None = None,
    unlabeled_dir: str | Sequence[str] | None = None,
    labeled: int | float | None = None,
    validation: int | float | None = None,
    test: int | float = 0.2,
    seed: int = 0,
    folds: int | None = None,
    patient_pattern: str | None = None,
    image_pattern: str | None = None,
    label_pattern: str | None = None,
    modalities: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    label_map: Mapping[int | str, int] | None = None,
    overwrite: bool = False,
) -> Path:
    """Pairs images and labels, splits them by patient and writes ``output_dir/dataset.json``.

    NIfTI files stay where they are and are referred to; NRRD files and DICOM series are converted into
    ``output_dir/images`` and ``output_dir/labels``, and images that are called alike in every case's folder are copied
    there. Images without a label are unlabeled. docs/preparation.md has the layouts of folders and names.

    Args:
        output_dir: folder for dataset.json, made if missing.
        image_dir: folder of the images: .nii.gz, .nii, .nrrd, or one subfolder with a DICOM series per case.
        label_dir: folder of the labels: .nii.gz, .nii, .nrrd, .seg.nrrd, DICOM-SEG, or one subfolder per case with one
            mask per structure.
        case_dir: instead of the two, a folder with one folder per case, which holds its images and its label.
        label_name: with case_dir or BIDS, the name of the label's file or its end: ``laendo``; by default label or seg.
        unlabeled_dir: folder(s) of further images, which have no labels.
        labeled: patients to use with their labels, or the fraction of those that have one; all that validation and
            test leave by default. The others become unlabeled.
        validation: patients, or fraction; 0.1 by default, 0 with folds.
        test: patients, or fraction.
        seed: of the draw; the same seed and the same names give the same split.
        folds: writes ``fold_0`` ... each with a dataset.json, which hold out one part of the labeled patients after
            another for validation; labeled, unlabeled and test cases are the same in all.
        patient_pattern: regular expression that finds the patient in a case's name, for several scans of one patient,
            such as ``"^(P[0-9]+)_"``; the whole name is the patient by default.
        image_pattern: names of the images, with ``*`` for what image and label have in common: ``"IMG_*"``.
        label_pattern: names of the labels: ``"SEG_*"``.
        modalities: suffixes (with case_dir also names) of a case's image files, in the order of the channels:
            ``[flair,t1]``. Without, the channels' names are those of a dataset.json beside image_dir, if there is one.
        class_names: of the label values 1, 2, ...; by default those of a dataset.json beside image_dir. Segments get
            their values by them, and a later one covers an earlier one.
        overwrite: replaces the data set that output_dir holds; files of cases that are no longer there stay.
        label_map: replaces label values: ``"{420: 1, 500: 2, others: 0}"``, where ``others`` are all that it does not
            name but 0; the labels are rewritten into ``output_dir/labels``. Segments are named:
            ``"{liver: 1, tumour: 2, others: 0}"``.

    Returns:
        Path of dataset.json; with folds, of that of the first fold.

    Raises:
        DataError: when files cannot be paired, split or read; naming the file or argument and the remedy.
    """
    root = Path(str(output_dir))
    if not overwrite and ((root / "dataset.json").exists() or (root / "fold_0").exists()):
        raise DataError(
            f"output_dir {root} already holds a data set: give another folder, or --overwrite true to write it anew."
        )
    if case_dir is not None:
        if image_dir is not None or label_dir is not None:
            raise DataError("give either --case_dir, or --image_dir and --label_dir.")
        cases = find_case_folders(case_dir, modalities=modalities, label_name=label_name)
    elif image_dir is None or label_dir is None:
        raise DataError("give --image_dir and --label_dir, or --case_dir.")
    elif is_bids(Path(image_dir)):
        patient_pattern = patient_pattern or PATIENT
        cases = find_bids(Path(image_dir), Path(label_dir), modalities=modalities, label_name=label_name)
    elif label_name is not None:
        raise DataError("--label_name belongs to --case_dir, or to BIDS: give --label_pattern for other names.")
    else:
        cases = find_cases(
            image_dir, label_dir, modalities=modalities, image_pattern=image_pattern, label_pattern=label_pattern
        )
    if not any(case.label for case in cases):
        raise DataError(
            f"none of {len(cases)} cases has a label (images are called {', '.join(c.name for c in cases[:3])}, ...): "
            "name the labels by --label_dir and --label_pattern, or with --case_dir by --label_name."
        )
    numbered = None if case_dir is not None or modalities else are_numbered(cases)
    for further in [unlabeled_dir] if isinstance(unlabeled_dir, str) else unlabeled_dir or []:
        # By the layout of the labeled ones: without labels a number may be a channel's or the case's own.
        cases += find_cases(
            further, modalities=modalities, numbered=numbered, argument="--unlabeled_dir", image_pattern=image_pattern
        )
    check_names(cases)
    if validation is None:
        validation = 0 if folds else 0.1
    elif folds and validation:
        raise DataError(f"validation is {validation} and folds {folds}: with folds, the folds are the validation.")
    split = split_cases(
        cases, labeled=labeled, validation=validation, test=test, seed=seed, patient_pattern=patient_pattern
    )
    with_label = (*split.labeled, *split.validation, *split.test)
    named = {case.label: segment_names(case.label) for case in with_label if case.label and has_segments(case.label)}
    check_label_map(label_map, named=bool(named))
    segments = numbering(named, class_names=class_names, label_map=label_map) if named else {}
    splits = fold_splits(split, folds, patient_pattern=patient_pattern) if folds else [split]
    header: dict[str, Any] = {
        "name": root.resolve().name,
        "description": f"split by patient with seed {seed}",
    }
    if image_dir is not None:
        header.update(declared_beside(image_dir))
    if label_map:
        header.pop(CLASSES, None)  # other values than those of the labels that are written
    if modalities:
        header.pop(CHANNELS[1], None)
        header["modality"] = {str(i): str(name) for i, name in enumerate(modalities)}
    if original := original_values(label_map or {}):
        header[ORIGINAL] = original
    if named:
        used = {value: name for name, value in reversed(segments.items()) if value}
        header["labels"] = {"0": "background", **{str(value): used[value] for value in sorted(used)}}
    if class_names:
        check_literal(class_names)
        header["labels"] = {str(i): str(name) for i, name in enumerate(["background", *class_names])}
    converter = Converter(root, label_map=label_map or {}, segments=segments)
    entries = converter.convert_all(split)
    if class_names:
        check_class_names(class_names, entries)
    written = []
    for number, part in enumerate(splits):
        folder = root / f"fold_{number}" if folds else root
        written.append(write_datalist(part, entries, folder, header))
        print(f"{written[-1]}: {counts(part, patient_pattern)}")
        for line in (*classes(part, entries, header), *separated(part, patient_pattern)):
            print(f"  {line}")
    for line in (*out_of_line(entries), *say_overlaps(converter.overlaps.values())):
        print(line)
    return written[0]


def check_names(cases: Sequence[CaseFiles]) -> None:
    """Raises DataError when two folders have a case of the same name or another number of channels."""
    seen: dict[str, CaseFiles] = {}
    for case in cases:
        if case.name in seen:
            raise DataError(f"{seen[case.name].images[0]} and {case.images[0]} have the same case name: rename one.")
        seen[case.name] = case
        if len(case.images) != len(cases[0].images):
            raise DataError(
                f"case {case.name!r} has {len(case.images)} image files and {cases[0].name!r} has "
                f"{len(cases[0].images)}: all need the same channels."
            )


def write_datalist(
    split: Split, entries: Mapping[str, Mapping[str, Any]], folder: Path, header: Mapping[str, Any]
) -> Path:
    """Writes ``folder/dataset.json``; returns its path."""

    def items(cases: Sequence[CaseFiles], *keys: str) -> list[dict[str, Any]]:
        return [{key: relative(entries[case.name][key], folder) for key in keys} for case in cases]

    lists = {
        "training": items(split.labeled, "image", "label"),
        "unlabeled": items(split.unlabeled, "image"),
        "validation": items(split.validation, "image", "label"),
        "test": items(split.test, "image", "label"),
    }
    return write_lists(folder, {**header, "numTraining": len(split.labeled)}, lists)


def relative(path: Path | Sequence[Path], folder: Path) -> str | list[str]:
    """A path or several as dataset.json has them: relative to ``folder`` where that is possible, with slashes."""
    if isinstance(path, Path):
        return _relative(path, folder)
    paths = [_relative(p, folder) for p in path]
    return paths[0] if len(paths) == 1 else paths


def _relative(path: Path, folder: Path) -> str:
    # Not the file itself: a link, as into an archive that stores files by their content, has the name of the case.
    path = path.parent.resolve() / path.name
    try:
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


if __name__ == "__main__":
    run_command(make_dataset)
