"""DICOM-SEG: segments DICOM series, and writes the masks as the segmentation objects that archives and viewers take.

python -m tools.dicom_seg --input_dir scans --output_dir masks
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from scripts.command import ROOT, options_of
from scripts.data import DataError
from scripts.data.colours import class_colours
from scripts.errors import chain
from scripts.files import replacing
from scripts.inference import exit_with_status
from scripts.inference.failures import SomeCasesFailedError
from scripts.inference.outcomes import FAILURES, checked_names
from scripts.inference.outputs import output_path
from scripts.overrides import read_words
from scripts.workflow import run_workflow
from tools.command_line import run_command
from tools.preparation.convert import check_grid
from tools.preparation.dicom import Series, is_dicom, load_series, read_file
from tools.preparation.orientation import to_axes_of
from tools.preparation.packages import need_package
from tools.preparation.volumes import load_volume, save_volume

HEADER = ["SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "Rows"]
# What every image has, if only empty, and anonymisers remove.
PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
MAY_BE_EMPTY = (*PATIENT, "AccessionNumber", "StudyID", "StudyDate", "StudyTime")
# Category and type of a class without codes.
TISSUE = ["85756007", "SCT", "Tissue"]
# Segmentations get the number of their series and this.
SERIES_NUMBER = 1000
LISTED = 5
LONGEST = 64  # characters of a name in DICOM


def find_series(
    folder: Path, *, description: str | None = None, outside: Path | None = None
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """The files of every series of images at and below a folder, by the series' name.

    A series is called after its folder, as a path below ``folder``; where a folder has several of them, after its
    number and description as well. Segmentations, reports and other objects without slices are left out.

    Args:
        folder: to look in, to any depth.
        description: a regular expression that is found in the SeriesDescription; upper and lower case are the same.
        outside: a folder to leave out, that of the results.

    Returns:
        The files, and the reasons why files are of no series, by their path.

    Raises:
        DataError: when there is no series.
    """
    need_package("pydicom", "pydicom", folder)
    try:
        pattern = re.compile(description or "", re.IGNORECASE)
    except re.error as error:
        raise DataError(f"description is {description!r}, which is no regular expression: {error}.") from error
    found: dict[str, tuple[Any, list[Path]]] = {}
    damaged: dict[str, str] = {}
    for file in sorted(folder.rglob("*")):
        if is_dicom(file) and not (outside and file.resolve().is_relative_to(outside.resolve())):
            try:
                header = read_file(file, specific_tags=HEADER, stop_before_pixels=True)
                found.setdefault(header.SeriesInstanceUID, (header, []))[1].append(file)
            except (DataError, AttributeError) as error:
                damaged[str(file)] = str(error)
    images = {
        uid: files for uid, (header, files) in found.items() if "Rows" in header and header.get("Modality") != "SEG"
    }
    if others := sorted(str(found[uid][0].get("Modality")) for uid in found.keys() - images.keys()):
        print(f"left out, since they are no images: series of the modalities {', '.join(others)}")
    places = {uid: Path(os.path.commonpath([file.parent for file in files])) for uid, files in images.items()}
    named: dict[str, list[Path]] = {}
    for uid, place in places.items():
        described = str(found[uid][0].get("SeriesDescription", ""))
        name = place.relative_to(folder).as_posix() if place != folder else folder.resolve().name
        if list(places.values()).count(place) > 1:
            words = f"{found[uid][0].get('SeriesNumber', '')} {described}"
            name += "/" + (re.sub(r"[^\w-]+", "_", words).strip("_") or "series")
        if pattern.search(described):
            named[name if name not in named else f"{name}_{uid.rpartition('.')[2]}"] = images[uid]
    if not named:
        seen = sorted({str(found[uid][0].get("SeriesDescription", "")) for uid in images})
        raise DataError(
            f"{folder} holds no DICOM series of images to segment; their descriptions are {seen[:LISTED]}: correct "
            "--input_dir or --description."
        )
    return named, damaged


def segment_numbers(mask: np.ndarray, values: Sequence[int] | None, path: Path) -> np.ndarray:
    """A mask with the numbers of its segments, 1, 2, ..., in the place of its label values.

    Args:
        mask: (H, W, D) label values, or (H, W, D, C) of 0 and 1, of regions that overlap.
        values: of the segments, in their order; None for regions.
        path: of the mask, for the message.

    Returns:
        As ``mask``, uint8.

    Raises:
        DataError: when a value is of no segment.
    """
    if values is None:
        return mask.astype(np.uint8)
    numbers = np.zeros(mask.shape, np.uint8)
    for number, value in enumerate(values, 1):
        numbers[mask == value] = number
    if others := np.setdiff1d(mask, [0, *values]).tolist():
        raise DataError(
            f"{path} has label values {others[:LISTED]}, and the classes have {list(values)}: give its run as --run, "
            'or --settings "{class_names: [a, b], label_values: [1, 3]}".'
        )
    return numbers


def write_seg(
    segments: np.ndarray,
    series: Series,
    names: Sequence[str],
    path: Path,
    *,
    metadata: Mapping[str, Any],
) -> None:
    """Writes segments as a binary DICOM-SEG on the slices, and in the frame of reference, of their series.

    Its UIDs follow from its content. A file with the same is left as it is, so that no archive gets it twice.

    Args:
        segments: (columns, rows, slices), uint8, numbers of segments, or (columns, rows, slices, C) of 0 and 1.
        series: that was segmented.
        names: of the segments 1, 2, ...
        path: of the file.
        metadata: of the bundle: ``name`` and ``version`` describe the algorithm; ``segment_codes`` has, by the names of
            segments, ``category`` and ``type``, each a list of code value, coding scheme and meaning.

    Raises:
        DataError: when the series lacks what a segmentation refers to.
    """
    need_package("highdicom", "highdicom", path)
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it says which attributes it copies

    first = series.datasets[0]
    for tag in MAY_BE_EMPTY:
        first.setdefault(tag, "")
    content = [hashlib.sha256(segments.tobytes()).hexdigest(), *map(str, (dict(metadata), list(names)))]
    content += [dataset.SOPInstanceUID for dataset in series.datasets]
    uid = generate_uid(entropy_srcs=content)
    if path.is_file() and read_file(path, stop_before_pixels=True).get("SOPInstanceUID") == uid:
        return
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=metadata["name"], version=metadata["version"], family=codes.DCM.ArtificialIntelligence
    )
    descriptions = []
    for number, (name, colour) in enumerate(zip(names, class_colours(len(names))), 1):
        coded = metadata.get("segment_codes", {}).get(name, {})
        category, kind = (highdicom.sr.CodedConcept(*coded.get(key, TISSUE)) for key in ("category", "type"))
        descriptions.append(
            highdicom.seg.SegmentDescription(
                number,
                name[:LONGEST],
                category,
                kind,
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
                display_color=highdicom.color.CIELabColor.from_string(colour),
            )
        )
    frames = np.empty_like(segments.swapaxes(0, 2), order="C")
    frames[series.order] = segments.swapaxes(0, 2)
    try:
        seg = highdicom.seg.Segmentation(
            source_images=series.datasets,
            pixel_array=frames,
            segmentation_type="BINARY",
            segment_descriptions=descriptions,
            series_instance_uid=generate_uid(entropy_srcs=[*content, "series"]),
            series_number=SERIES_NUMBER + int(first.get("SeriesNumber") or 0),
            series_description=f"Segmentation: {first.get('SeriesDescription', '')}"[:LONGEST],
            sop_instance_uid=uid,
            instance_number=1,
            manufacturer=metadata["authors"],
            manufacturer_model_name=metadata["name"],
            software_versions=metadata["version"],
            device_serial_number="none",
        )
    except (AttributeError, KeyError, ValueError) as error:
        raise DataError(
            f"{getattr(first, 'filename', path)}: no DICOM-SEG can refer to its series ({error}): export it again with "
            "all tags."
        ) from error
    with replacing(path) as temporary:
        seg.save_as(temporary)


def segment_series(
    input_dir: str,
    output_dir: str,
    *,
    run: str | None = None,
    settings: Mapping[str, str] | None = None,
    masks: str | None = None,
    images_only: bool = False,
    description: str | None = None,
    codes: str | None = None,
) -> None:
    """Segments every DICOM series of a folder: a NIfTI image, a NIfTI mask and a DICOM-SEG for each.

    ``<output_dir>/<series>_seg.dcm`` and ``_seg.nii.gz`` are the mask, ``<output_dir>/images/<series>.nii.gz`` is what
    was segmented. A series that cannot be used is a row of ``failures.csv``; the others go on. The exit status is that
    of inference: 0, 1 if nothing was done, 2 if some series failed.

    Args:
        input_dir: folder of the series, in subfolders or not.
        output_dir: made if missing.
        run: output_dir of a training, whose weights are used; those of the bundle by default.
        settings: config ids of inference and their values, ``{device: cpu, threshold: 0.4}``.
        masks: makes DICOM-SEG of masks that exist, and segments nothing: a NIfTI file, or a folder in which inference
            has written them under the names of the series. They may have other axes than the series, on the same grid.
        images_only: ends when the series are NIfTI files.
        description: a regular expression that chooses series by their SeriesDescription, "t1|flair".
        codes: a JSON file with the codes of the classes, as "segment_codes" in configs/metadata.json, which is the
            default.
    """
    exit_with_status()
    source, target = Path(input_dir), Path(output_dir)
    images = target / "images"
    words = [word for name, value in (settings or {}).items() for word in (f"--{name}", str(value))]
    options = options_of("infer", *read_words(words + ([] if run is None else ["--run", run])))
    options["output_dir"] = str(target)
    metadata = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    if codes is not None:
        metadata["segment_codes"] = codes_of(codes)
    names, values = classes_of(options)
    if not images_only:
        need_package("highdicom", "highdicom", source)
    found, failures = find_series(source, description=description, outside=target)
    converted: dict[str, Path] = {}

    def attempt(name: str, what: Any) -> None:
        try:
            what()
        except (DataError, OSError) as error:
            failures[name] = str(error)
            print(f"{name} failed: {error}")

    def convert(name: str) -> None:
        series = load_series(source / name, found[name])
        converted[name] = save_volume(series.array, series.affine, images / f"{name}.nii.gz")

    def wrap(name: str) -> None:
        path = output_path(converted[name], "seg", output_dir=target, root=images)
        made = path
        if masks is not None:
            made = Path(masks) if Path(masks).is_file() else Path(masks) / path.relative_to(target)
        if not made.is_file():
            raise DataError(f"{made} does not exist: the series has no mask.")
        series = load_series(source / name, found[name])
        mask, affine = to_axes_of(*load_volume(made), series.affine)
        volume = mask if mask.ndim == 3 else mask[..., 0]
        check_grid(volume.shape, affine, (series.array.shape, series.affine), made, converted[name])
        seg = path.with_name(path.name.removesuffix(".nii.gz") + ".dcm")
        seg.parent.mkdir(parents=True, exist_ok=True)
        write_seg(segment_numbers(mask, values, made), series, names, seg, metadata=metadata)
        print(f"{name}: {seg}")

    target.mkdir(parents=True, exist_ok=True)
    (target / "failures.csv").unlink(missing_ok=True)
    for name in found:
        attempt(name, lambda name=name: convert(name))
    if converted and not images_only and masks is None:
        listed = [str(path) for path in converted.values()]
        try:
            run_workflow({**options, "input_dir": listed, "root": str(images)})
        except Exception as error:
            if not any(isinstance(cause, SomeCasesFailedError) for cause in chain(error)):
                raise
            with (target / "failures.csv").open(newline="", encoding="utf-8") as file:
                reasons = dict(list(csv.reader(file))[1:])
            # An earlier mask of another image may lie where theirs would be.
            failures |= {name: reasons[str(path)] for name, path in converted.items() if str(path) in reasons}
    for name in converted if not images_only else ():
        if name not in failures:
            attempt(name, lambda name=name: wrap(name))
    if failures:
        with replacing(target / "failures.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([FAILURES, *failures.items()])
        kind = SomeCasesFailedError if found.keys() - failures.keys() else DataError
        raise kind(f"{len(failures)} series or files failed; the reasons are in {target / 'failures.csv'}.")


def codes_of(path: str) -> dict[str, dict[str, list[str]]]:
    """The codes in a file of :func:`segment_series`.

    Raises:
        DataError: when it is no such file.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if all(len(code) == 3 for codes in found.values() for code in (codes["category"], codes["type"])):
            return found
        problem: object = "a code has three parts"
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise DataError(
        f'{path} has no codes ({problem}): write {{"liver": {{"category": ["91723000", "SCT", "Anatomical Structure"], '
        '"type": ["10200004", "SCT", "Liver"]}}.'
    )


def classes_of(options: Mapping[str, Any]) -> tuple[list[str], list[int] | None]:
    """Names and label values of the classes of a command's options; no values where the classes are regions."""
    parser = ConfigParser()
    parser.read_config(options["config_file"])
    parser.update({name: value for name, value in options.items() if name in parser})
    coding = parser.get_parsed_content("label_coding")
    values = parser.get_parsed_content("label_values") or list(range(1, coding.num_classes + 1))
    return checked_names(parser.get_parsed_content("class_names"), coding), None if coding.regions else values


if __name__ == "__main__":
    run_command(segment_series)
