"""Tests of tools/dicom_seg.py: series in, DICOM-SEG out, read back by highdicom and compared with the NIfTI masks."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from conftest import ROOT, blob, run_process
from originals import write_dicom, write_frames
from pydicom.uid import generate_uid

from scripts.data import DataError
from scripts.inference.failures import SomeCasesFailedError
from tools import dicom_seg
from tools.preparation.dicom import load_series

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed (requirements-dicom.txt)")

SHAPE = (20, 18, 9)
TO_LPS = np.diag([-1.0, -1, 1, 1])
TURN, TILT = 0.35, 0.2
# Rows and columns of pixels that are parallel to no axis of the patient.
OBLIQUE = (
    *(np.cos(TURN), np.sin(TURN), 0.0),
    *(-np.sin(TURN) * np.cos(TILT), np.cos(TURN) * np.cos(TILT), np.sin(TILT)),
)
ANISOTROPIC = {"spacing": (0.9, 0.7, 2.5), "directions": OBLIQUE, "number": lambda k: (k * 5) % 9 + 1}
SERIES = {
    "oblique": ANISOTROPIC,
    "from-the-head": {"head_first": True},
    "one-number": {"number": lambda k: 1},
    "tilted-gantry": {"step": (0.0, 0.5, 2.5)},
}
METADATA = {
    "name": "Example",
    "version": "1.2.3",
    "authors": "the authors",
    "segment_codes": {
        "left atrium": {
            "category": ["91723000", "SCT", "Anatomical Structure"],
            "type": ["82471001", "SCT", "Left atrium"],
        }
    },
}


def tags(**more: object) -> dict[str, object]:
    """What a scanner writes and originals.py does not."""
    return {"FrameOfReferenceUID": generate_uid(), "PatientID": "7", "PatientName": "A^B", "SeriesNumber": 3, **more}


def labels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A label (H, W, D) of the values 0, 1 and 3 that no mirroring and no exchange of axes leaves as it is."""
    label = np.zeros(shape, np.uint8)
    label[2:9, 3:6, 1:5], label[10:14, 2:15, 4:7], label[5, 5, 2] = 1, 3, 3
    return label


def places(mask: np.ndarray, affine: np.ndarray) -> set[tuple[float, ...]]:
    """The voxels of a mask (H, W, D) as points of the patient, LPS, in hundredths of a millimetre."""
    points = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    return set(map(tuple, np.rint(points * 100).astype(int).tolist()))


def places_of_frames(path: Path) -> dict[str, set[tuple[float, ...]]]:
    """The same of a DICOM-SEG by the standard's definition of each frame's attributes, by the names of its segments."""
    seg = highdicom.seg.segread(path)
    found: dict[str, set] = {item.SegmentLabel: set() for item in seg.SegmentSequence}
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for own, frame in zip(seg.PerFrameFunctionalGroupsSequence, pixels):
        groups = {group.keyword: group[0] for both in (seg.SharedFunctionalGroupsSequence[0], own) for group in both}
        number = groups["SegmentIdentificationSequence"].ReferencedSegmentNumber
        directions = np.reshape(groups["PlaneOrientationSequence"].ImageOrientationPatient, (2, 3)).astype(float)
        between_rows, between_columns = map(float, groups["PixelMeasuresSequence"].PixelSpacing)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = directions[0] * between_columns, directions[1] * between_rows
        affine[:3, 3] = groups["PlanePositionSequence"].ImagePositionPatient
        found[seg.SegmentSequence[number - 1].SegmentLabel] |= places(frame.T[..., None] > 0, affine)
    return found


@pytest.mark.parametrize("name", SERIES)
def test_every_voxel_is_where_the_nifti_mask_has_it(tmp_path, name):
    affine = write_dicom(tmp_path / "in", np.zeros(SHAPE, int), tags=tags(), **SERIES[name])
    series = load_series(tmp_path / "in")
    segments = dicom_seg.segment_numbers(labels(), [1, 3], tmp_path)
    dicom_seg.write_seg(segments, series, ["left atrium", "wall"], tmp_path / "a.dcm", metadata=METADATA)
    expected = {"left atrium": places(labels() == 1, TO_LPS @ affine), "wall": places(labels() == 3, TO_LPS @ affine)}
    assert places_of_frames(tmp_path / "a.dcm") == expected
    if name != "tilted-gantry":  # highdicom has no sheared volumes
        seg = highdicom.seg.segread(tmp_path / "a.dcm")
        volume = seg.get_volume()
        for index, value in enumerate((1, 3)):
            assert places(volume.array[..., index], volume.affine) == places(labels() == value, TO_LPS @ affine)


def test_segments_have_names_codes_colours_and_the_patient_study_and_frame_of_reference_of_their_series(tmp_path):
    write_dicom(tmp_path / "in", np.zeros(SHAPE, int), tags=tags())
    series = load_series(tmp_path / "in")
    dicom_seg.write_seg((labels() + 1) // 2, series, ["left atrium", "wall"], tmp_path / "a.dcm", metadata=METADATA)
    seg, source = highdicom.seg.segread(tmp_path / "a.dcm"), series.datasets[0]
    for tag in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[tag].value == source[tag].value, tag
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID and seg.SeriesNumber == 1003
    referenced = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {dataset.SOPInstanceUID for dataset in series.datasets}
    atrium, wall = (seg.get_segment_description(number) for number in (1, 2))
    assert [atrium.segment_label, wall.segment_label] == ["left atrium", "wall"]
    assert (atrium.segmented_property_type.value, wall.segmented_property_type.value) == ("82471001", "85756007")
    assert atrium.algorithm_type.value == "AUTOMATIC"
    assert atrium.algorithm_identification.version == "1.2.3"
    lab = highdicom.color.CIELabColor.from_dicom_value(list(atrium.RecommendedDisplayCIELabValue))
    assert np.allclose(lab.to_rgb(clip=True), (0xE6, 0x9F, 0x00), atol=2)


def test_an_empty_mask_and_overlapping_regions_are_segmentations_too(tmp_path):
    affine = write_dicom(tmp_path / "in", np.zeros(SHAPE, int), tags=tags())
    series = load_series(tmp_path / "in")
    dicom_seg.write_seg(np.zeros(SHAPE, np.uint8), series, ["a", "b"], tmp_path / "empty.dcm", metadata=METADATA)
    assert places_of_frames(tmp_path / "empty.dcm") == {"a": set(), "b": set()}
    regions = np.stack([labels() > 0, labels() == 3], axis=-1).astype(np.uint8)
    dicom_seg.write_seg(regions, series, ["whole", "core"], tmp_path / "b.dcm", metadata=METADATA)
    expected = {"whole": places(labels() > 0, TO_LPS @ affine), "core": places(labels() == 3, TO_LPS @ affine)}
    assert places_of_frames(tmp_path / "b.dcm") == expected


def test_a_segmentation_of_the_same_content_is_left_as_it_is_and_another_has_other_uids(tmp_path):
    write_dicom(tmp_path / "in", np.zeros(SHAPE, int), tags=tags())
    series, path = load_series(tmp_path / "in"), tmp_path / "a.dcm"
    dicom_seg.write_seg(labels(), series, ["a", "b", "c"], path, metadata=METADATA)
    first = path.read_bytes()
    dicom_seg.write_seg(labels(), series, ["a", "b", "c"], path, metadata=METADATA)
    assert path.read_bytes() == first
    uid = pydicom.dcmread(path).SOPInstanceUID
    dicom_seg.write_seg(labels()[::-1], series, ["a", "b", "c"], path, metadata=METADATA)
    assert pydicom.dcmread(path).SOPInstanceUID != uid


def test_a_series_of_one_file_of_frames_in_any_order_is_a_source_too(tmp_path):
    order = [3, 0, 6, 1, 8, 5, 2, 7, 4]
    write_frames(tmp_path / "a.dcm", np.zeros(SHAPE, int), order=order, tags=tags(StudyInstanceUID=generate_uid()))
    series = load_series(tmp_path / "a.dcm")
    assert list(series.order) == np.argsort(order).tolist()
    dicom_seg.write_seg((labels() + 1) // 2, series, ["a", "b"], tmp_path / "seg.dcm", metadata=METADATA)
    assert places_of_frames(tmp_path / "seg.dcm")["b"] == places(labels() == 3, TO_LPS @ series.affine)


def test_a_series_without_a_frame_of_reference_is_refused_and_one_without_a_patient_is_not(tmp_path):
    write_dicom(tmp_path / "in", np.zeros(SHAPE, int))
    with pytest.raises(DataError, match="Frame Of Reference"):
        dicom_seg.write_seg(labels(), load_series(tmp_path / "in"), ["a"] * 3, tmp_path / "a.dcm", metadata=METADATA)
    assert not (tmp_path / "a.dcm").exists()
    write_dicom(tmp_path / "anonymous", np.zeros(SHAPE, int), tags={"FrameOfReferenceUID": generate_uid()})
    series = load_series(tmp_path / "anonymous")
    dicom_seg.write_seg(labels(), series, ["a", "b", "c"], tmp_path / "a.dcm", metadata=METADATA)
    assert highdicom.seg.segread(tmp_path / "a.dcm").PatientID == ""


def failures(folder: Path) -> dict[str, str]:
    with (folder / "failures.csv").open(newline="", encoding="utf-8") as file:
        return {row["case"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def scans(tmp_path) -> Path:
    """Two series in one folder, one in another, and what archives export with them."""
    folder = tmp_path / "in"
    for number, description in ((1, "T1 post"), (2, "FLAIR")):
        write_dicom(folder / "x", np.zeros(SHAPE, int), tags=tags(SeriesNumber=number, SeriesDescription=description))
        for path in list((folder / "x").iterdir()):
            (folder / "p1").mkdir(exist_ok=True)
            path.rename(folder / "p1" / f"{number}-{path.name}")
    (folder / "x").rmdir()
    write_dicom(folder / "p2" / "scan", labels().astype(int), tags=tags(SeriesDescription="T1 pre"), **ANISOTROPIC)
    write_dicom(folder / "p2" / "report", np.zeros((2, 2, 2), int), tags={"Modality": "SR"})
    for path in (folder / "p2" / "report").iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.Rows
        dataset.save_as(path)
    return folder


def test_series_are_found_by_their_uid_and_chosen_by_their_description(scans):
    found, damaged = dicom_seg.find_series(scans)
    assert {name: len(files) for name, files in found.items()} == {"p1/1_T1_post": 9, "p1/2_FLAIR": 9, "p2/scan": 9}
    assert damaged == {}
    assert list(dicom_seg.find_series(scans, description="^t1")[0]) == ["p1/1_T1_post", "p2/scan"]
    for description, named in {"T2": "'FLAIR'", "(": r"'\('"}.items():
        with pytest.raises(DataError, match=named):
            dicom_seg.find_series(scans, description=description)


@pytest.mark.parametrize(
    "text", [None, "[]", '{"liver": {"type": ["1", "SCT", "Liver"]}}', '{"liver": "1"}', "liver: 1"]
)
def test_a_file_that_has_no_codes_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "codes.json").write_text(text)
    with pytest.raises(DataError, match="codes.json"):
        dicom_seg.codes_of(str(tmp_path / "codes.json"))


def test_conversion_alone_needs_no_labels_and_one_broken_series_leaves_the_others_alone(scans, tmp_path):
    damaged = scans / "p1" / "2-1-014.dcm"
    damaged.write_bytes(b"\0" * 128 + b"DICMbroken")
    (scans / "p1" / "1-1-014.dcm").unlink()
    with pytest.raises(SomeCasesFailedError):
        dicom_seg.segment_series(str(scans), str(tmp_path / "out"), images_only=True)
    assert set(failures(tmp_path / "out")) == {"p1/1_T1_post", "p1/2_FLAIR", str(damaged)}
    image = nibabel.load(tmp_path / "out" / "images" / "p2" / "scan.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), labels())


@pytest.mark.parametrize("single", [True, False], ids=["file", "folder"])
def test_masks_that_exist_become_dicom_seg_whatever_the_order_of_their_axes(scans, tmp_path, single):
    series = load_series(scans / "p2" / "scan")
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(labels(), series.affine))
    assert turned.shape != labels().shape or not np.array_equal(np.asarray(turned.dataobj), labels())
    path = tmp_path / "masks" / "p2" / "scan_seg.nii.gz"
    path.parent.mkdir(parents=True)
    nibabel.save(turned, path)
    masks = path if single else tmp_path / "masks"
    settings = {"num_classes": "2", "class_names": "[a,b]", "label_values": "[1,3]"}
    options = {"masks": str(masks), "description": "pre", "settings": settings}
    dicom_seg.segment_series(str(scans), str(tmp_path / "out"), **options)
    found = places_of_frames(tmp_path / "out" / "p2" / "scan_seg.dcm")
    assert found["b"] == places(labels() == 3, TO_LPS @ series.affine)
    assert not (tmp_path / "out" / "failures.csv").exists()
    with pytest.raises(DataError):  # the class of the shipped model has the value 1
        dicom_seg.segment_series(str(scans), str(tmp_path / "out"), **{**options, "settings": None})
    assert "[3]" in failures(tmp_path / "out")["p2/scan"]


def test_a_mask_on_another_grid_and_one_that_is_missing_are_rows_of_failures(scans, tmp_path):
    series = load_series(scans / "p2" / "scan")
    away = series.affine.copy()
    away[:3, 3] += 1
    (tmp_path / "p2").mkdir()
    nibabel.save(nibabel.Nifti1Image(labels(), away), tmp_path / "p2" / "scan_seg.nii.gz")
    with pytest.raises(DataError):
        dicom_seg.segment_series(str(scans), str(tmp_path / "out"), masks=str(tmp_path))
    found = failures(tmp_path / "out")
    assert sorted(found) == ["p1/1_T1_post", "p1/2_FLAIR", "p2/scan"]
    assert "mm away" in found["p2/scan"] and "FLAIR_seg.nii.gz" in found["p1/2_FLAIR"]


def test_one_command_segments_a_folder_of_series_with_the_shipped_model_and_says_what_failed(tmp_path):
    shape = (40, 36, 14)
    image = blob(shape, seed=0)[0].astype(int)
    affine = write_dicom(tmp_path / "in" / "p1" / "a", image, tags=tags(), **ANISOTROPIC)
    write_dicom(tmp_path / "in" / "p2" / "b", image, tags=tags())
    (tmp_path / "in" / "p2" / "b" / "1-014.dcm").unlink()
    command = [sys.executable, "-m", "tools.dicom_seg", "--input_dir", str(tmp_path / "in")]
    command += ["--output_dir", str(tmp_path / "out"), "--settings", "{device: cpu, threshold: 0.1}"]
    finished = run_process(command)
    assert finished.returncode == 2, finished.stderr
    assert list(failures(tmp_path / "out")) == ["p2/b"]
    mask = nibabel.load(tmp_path / "out" / "p1" / "a_seg.nii.gz")
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
    voxels = np.asarray(mask.dataobj)
    assert voxels.any()
    assert places_of_frames(tmp_path / "out" / "p1" / "a_seg.dcm") == {
        "left atrium": places(voxels == 1, TO_LPS @ affine)
    }
    seg = highdicom.seg.segread(tmp_path / "out" / "p1" / "a_seg.dcm")
    metadata = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    code = seg.get_segment_description(1).segmented_property_type
    assert [code.value, code.scheme_designator, code.meaning] == metadata["segment_codes"]["left atrium"]["type"]
