"""Tests of tools/preparation/segments.py: Slicer's segmentations, DICOM-SEG and one mask per structure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from conftest import SHAPES, blob, las, save
from originals import write_dicom
from pydicom.uid import generate_uid

from scripts.data import DataError
from tools.preparation.dataset import make_dataset
from tools.preparation.segments import merged, numbering, onto_grid, segment_names

SPACING = (1.0, 1.2, 2.0)
SHAPE = (12, 10, 8)
TO_LPS = np.diag([-1.0, -1, 1, 1])
# What a segmentation takes over from its series, and originals.py does not write.
EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate")
PATIENT = {**dict.fromkeys((*EMPTY, "StudyTime"), ""), "FrameOfReferenceUID": "1.2.3"}


def structures(seed: int = 0) -> dict[str, np.ndarray]:
    """Two masks (H, W, D) that share some voxels."""
    liver, tumour = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    liver[2 : 9 + seed % 2, 2:8, 1:7] = True
    tumour[7:11, 3:6, 2:5] = True
    return {"liver": liver, "tumour": tumour}


def write_segmentation(
    path: Path,
    masks: Mapping[str, np.ndarray],
    affine: np.ndarray,
    *,
    values: Sequence[int] | None = None,
    layers: bool = False,
    extent: tuple[slice, ...] = (slice(None),) * 3,
) -> None:
    """Writes masks as 3D Slicer does: in layers where they overlap, cropped to ``extent``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values or list(range(1, len(masks) + 1))
    header: dict[str, object] = {"space": "left-posterior-superior", "encoding": "gzip"}
    array = np.zeros(((len(masks) if layers else 1), *SHAPE), np.uint8)
    for n, ((name, mask), value) in enumerate(zip(masks.items(), values)):
        array[n if layers else 0][mask] = 1 if layers else value
        header |= {f"Segment{n}_ID": f"s{n}", f"Segment{n}_Name": name}
        header |= {f"Segment{n}_Layer": str(n if layers else 0), f"Segment{n}_LabelValue": str(1 if layers else value)}
    array = array[(slice(None), *extent)]
    lps = TO_LPS @ affine
    origin = lps @ [*(part.start or 0 for part in extent), 1]
    directions = lps[:3, :3].T
    if layers:
        header |= {"kinds": ["list", *["domain"] * 3], "space directions": np.vstack([[np.nan] * 3, directions])}
    else:
        array = array[0]
        header |= {"kinds": ["domain"] * 3, "space directions": directions}
    nrrd.write(str(path), array, {**header, "space origin": origin[:3]})


def write_seg(path: Path, masks: Mapping[str, np.ndarray], series: Path, *, kind: str = "BINARY") -> None:
    """Writes masks (columns, rows, slices) as DICOM-SEG on the grid of a series, without empty frames."""
    highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed (requirements-dicom.txt)")
    tissue = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    algorithm = {"algorithm_type": "MANUAL"}
    sources = sorted(map(pydicom.dcmread, series.iterdir()), key=lambda source: source.ImagePositionPatient[2])
    pixels = np.stack([mask.T for mask in masks.values()], axis=-1)
    if kind == "LABELMAP":
        pixels = painted(masks, *masks).T
    path.parent.mkdir(parents=True, exist_ok=True)
    highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels * 0.6 if kind == "FRACTIONAL" else pixels.astype(np.uint8),
        segmentation_type=kind,
        segment_descriptions=[
            highdicom.seg.SegmentDescription(n, name, tissue, tissue, **algorithm) for n, name in enumerate(masks, 1)
        ],
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    ).save_as(path)


def painted(masks: Mapping[str, np.ndarray], *names: str) -> np.ndarray:
    """The label in which the names are the classes 1, 2, ... and a later one covers an earlier one."""
    label = np.zeros(SHAPE, np.uint8)
    for value, name in enumerate(names, 1):
        label[masks[name]] = value
    return label


@pytest.mark.parametrize(
    "options",
    [
        {"layers": True},
        {"layers": True, "extent": (slice(1, 11), slice(2, 8), slice(1, 7))},
    ],
    ids=["layers", "cropped"],
)
def test_slicers_layers_and_cropped_extents_are_merged_by_the_names(tmp_path, options):
    affine = las(SPACING)
    write_segmentation(tmp_path / "a.seg.nrrd", structures(), affine, **options)
    assert segment_names(tmp_path / "a.seg.nrrd") == ["liver", "tumour"]
    label, overlaps = merged(tmp_path / "a.seg.nrrd", {"liver": 1, "tumour": 2}, SHAPE, affine)
    assert np.array_equal(label, painted(structures(), "liver", "tumour"))
    shared = int((structures()["liver"] & structures()["tumour"]).sum())
    assert shared > 0 and overlaps == {("liver", "tumour"): shared}
    label, overlaps = merged(tmp_path / "a.seg.nrrd", {"tumour": 2, "liver": 1}, SHAPE, affine)
    expected = painted(structures(), "liver", "tumour")
    expected[structures()["liver"]] = 1
    assert np.array_equal(label, expected) and overlaps == {("tumour", "liver"): shared}


def test_segments_on_another_grid_go_to_the_nearest_voxel_and_outside_is_refused(tmp_path):
    mask = structures()["liver"]
    affine = las(SPACING)
    fine = affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = affine[:3, 3] - affine[:3, :3] @ np.full(3, 0.25)
    assert np.array_equal(onto_grid(mask.repeat(2, 0).repeat(2, 1).repeat(2, 2), fine, SHAPE, affine), mask)
    flipped = affine @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] = affine[:3, 3] + affine[:3, 0] * (SHAPE[0] - 1)
    assert np.array_equal(onto_grid(mask[::-1], flipped, SHAPE, affine), mask)
    away = affine.copy()
    away[:3, 3] += 500
    write_segmentation(tmp_path / "a.seg.nrrd", structures(), away)
    with pytest.raises(DataError, match="'liver' lies outside"):
        merged(tmp_path / "a.seg.nrrd", {"liver": 1, "tumour": 2}, SHAPE, affine)


@pytest.mark.parametrize("angle", [0, 7, 33])
def test_a_mask_cropped_to_its_structure_keeps_its_outer_slices(angle):
    """Tilted grids meet in coordinates like -1e-15, and up to half a voxel outside is still the outer voxel."""
    affine = las(SPACING)
    turn = np.eye(4)
    turn[1:3, 1:3] = [
        [np.cos(np.radians(angle)), -np.sin(np.radians(angle))],
        [np.sin(np.radians(angle)), np.cos(np.radians(angle))],
    ]
    affine = turn @ affine
    expected = np.zeros(SHAPE, bool)
    expected[2:9, 2:8, 1:7] = True
    for part in (0.0, 1e-9, -1e-9, 0.3, -0.3):
        own = affine.copy()
        own[:3, 3] += affine[:3, :3] @ (np.array([2, 2, 1]) + part)
        assert np.array_equal(onto_grid(np.ones((7, 6, 6), bool), own, SHAPE, affine), expected)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_dicom_seg_lies_on_its_series_also_where_empty_frames_are_left_out(tmp_path, kind):
    affine = write_dicom(tmp_path / "series", np.zeros(SHAPE, int), tags=PATIENT)
    masks = structures()
    masks["tumour"][:, :, 3] = False  # a gap in its frames
    write_seg(tmp_path / "a.dcm", masks, tmp_path / "series", kind=kind)
    label, _ = merged(tmp_path / "a.dcm", {"liver": 1, "tumour": 2}, SHAPE, affine)
    assert np.array_equal(label, painted(masks, "liver", "tumour"))


# --- numbering ---

NAMES = {Path("a"): ["Liver", "tumour"], Path("b"): ["tumour", "liver", "cyst"]}


@pytest.mark.parametrize(
    "class_names, label_map, expected",
    [
        (None, None, [("liver", 1), ("tumour", 2), ("cyst", 3)]),
        (["cyst", "Tumour", "liver"], None, [("cyst", 1), ("tumour", 2), ("liver", 3)]),
        (None, {"tumour": 2, "Liver": 1, "others": 0}, [("cyst", 0), ("tumour", 2), ("liver", 1)]),
        (None, {"liver": 1, "tumour": 1, "cyst": 1}, [("liver", 1), ("tumour", 1), ("cyst", 1)]),
        (["a", "b"], {"liver": 2, "others": 1}, [("tumour", 1), ("cyst", 1), ("liver", 2)]),
    ],
)
def test_names_decide_on_the_values_and_their_order_on_what_covers_what(class_names, label_map, expected):
    assert list(numbering(NAMES, class_names=class_names, label_map=label_map).items()) == expected


@pytest.mark.parametrize(
    "class_names, label_map, named",
    [
        (["liver", "tumour"], None, "cyst"),
        (None, {"liver": 1}, "tumour"),
        (None, {"lever": 1, "others": 0}, "lever"),
    ],
)
def test_segments_without_a_class_and_classes_without_a_segment_are_named(class_names, label_map, named):
    with pytest.raises(DataError, match=named):
        numbering(NAMES, class_names=class_names, label_map=label_map)


def test_two_segments_of_one_name_are_refused(tmp_path):
    write_segmentation(
        tmp_path / "a.seg.nrrd", {"Tumour": structures()["tumour"], "tumour": structures()["liver"]}, las(SPACING)
    )
    with pytest.raises(DataError, match="several segments called 'tumour'"):
        segment_names(tmp_path / "a.seg.nrrd")


# --- data sets ---


def made(folder: Path, **options: object) -> tuple[dict, dict[str, np.ndarray]]:
    """dataset.json, and the written labels by the names of their images."""
    path = make_dataset(output_dir=str(folder / "set"), **{"validation": 0, "test": 1, **options})
    content = json.loads(path.read_text(encoding="utf-8"))
    labels = {}
    for entry in content["training"] + content["test"]:
        image, label = nibabel.load(path.parent / entry["image"]), nibabel.load(path.parent / entry["label"])
        np.testing.assert_allclose(image.affine, label.affine)
        labels[Path(entry["image"]).name.split(".")[0]] = np.asarray(label.dataobj)
    return content, labels


def test_values_that_differ_from_case_to_case_are_no_other_classes(tmp_path):
    for n, name in enumerate("abc"):
        save(blob(SHAPE, seed=n)[0], las(SPACING), tmp_path / "i" / f"{name}.nii.gz")
        masks = structures(n)
        masks["tumour"] &= ~masks["liver"]
        ordered = masks if n else dict(reversed(masks.items()))
        write_segmentation(
            tmp_path / "l" / f"{name}.seg.nrrd", ordered, las(SPACING), values=[[7, 3], [1, 2], [2, 1]][n]
        )
    content, labels = made(tmp_path, image_dir=str(tmp_path / "i"), label_dir=str(tmp_path / "l"))
    assert content["labels"] == {"0": "background", "1": "tumour", "2": "liver"}  # as they come in the first case
    for n, name in enumerate("abc"):
        masks = structures(n)
        masks["tumour"] &= ~masks["liver"]
        assert np.array_equal(labels[name], painted(masks, "tumour", "liver"))


def test_one_mask_per_structure_in_the_layout_of_totalsegmentator(tmp_path, capsys):
    for n, name in enumerate(("s0001", "s0002", "s0003")):
        save(blob(SHAPE, seed=n)[0], las(SPACING), tmp_path / "in" / name / "ct.nii.gz")
        for structure, mask in structures(n).items():
            save(mask.astype(np.uint8), las(SPACING), tmp_path / "in" / name / "segmentations" / f"{structure}.nii.gz")
    given = {"case_dir": str(tmp_path / "in")}
    content, labels = made(tmp_path, **given, class_names=["tumour", "liver"])
    assert content["labels"] == {"0": "background", "1": "tumour", "2": "liver"}
    for n, name in enumerate(("s0001", "s0002", "s0003")):
        assert np.array_equal(labels[name], painted(structures(n), "tumour", "liver"))
    shared = sum(int((structures(n)["liver"] & structures(n)["tumour"]).sum()) for n in range(3))
    assert f"liver covers tumour in {shared} voxels of 3 cases" in capsys.readouterr().out
    content, labels = made(tmp_path / "one", **given, label_map={"liver": 1, "others": 0})
    assert content["labels"] == {"0": "background", "1": "liver"}
    assert np.array_equal(labels["s0002"], structures(1)["liver"])


def test_structures_may_lie_in_a_folder_of_each_case_beside_the_images(tmp_path):
    for n, name in enumerate("ab"):
        save(blob(SHAPE, seed=n)[0], las(SPACING), tmp_path / "i" / f"{name}.nii.gz")
        for structure, mask in structures(n).items():
            save(mask.astype(np.uint8), las(SPACING), tmp_path / "l" / name / f"{structure}.nii.gz")
    _, labels = made(tmp_path, image_dir=str(tmp_path / "i"), label_dir=str(tmp_path / "l"))
    assert np.array_equal(labels["b"], painted(structures(1), "liver", "tumour"))


def test_dicom_series_with_dicom_seg_become_a_data_set(tmp_path):
    for name in "abc":
        write_dicom(tmp_path / "i" / name, blob(SHAPE, seed=ord(name))[0].astype(int), tags=PATIENT)
    for n, name in enumerate(("a.dcm", "b/seg.dcm", "c_seg.dcm")):
        write_seg(tmp_path / "l" / name, structures(n), tmp_path / "i" / name[0])
    _, labels = made(
        tmp_path, image_dir=str(tmp_path / "i"), label_dir=str(tmp_path / "l"), class_names=["liver", "tumour"]
    )
    assert sorted(labels) == ["a", "b", "c"]
    for n, name in enumerate("abc"):
        assert np.array_equal(labels[name], painted(structures(n), "liver", "tumour"))


def test_plain_labels_know_no_names(tmp_path):
    for n in range(2):
        voxels, mask = blob(SHAPES[0], seed=n)
        save(voxels, las(SPACING), tmp_path / "i" / f"{n}.nii.gz")
        save(mask, las(SPACING), tmp_path / "l" / f"{n}.nii.gz")
    with pytest.raises(DataError, match="liver"):
        made(tmp_path, image_dir=str(tmp_path / "i"), label_dir=str(tmp_path / "l"), label_map={"liver": 1})
