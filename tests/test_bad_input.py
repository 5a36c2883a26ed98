"""Tests of malformed input: each ends in one message with file and remedy, before training and at inference.

No traceback, no hang, no memory for what a damaged header announces; the other cases of a folder are still segmented.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT, blob, las, run_bundle, save, small, write_dataset

from scripts.data import DataError, LabelCoding
from scripts.preflight import Preflight
from tools.preparation.fingerprint import read_fingerprints

INFERENCE, TRAIN = "configs/inference.json", "configs/train.json"
SHAPE = (20, 18, 17)
AFFINE = las((1.0, 1.2, 2.0))
# Byte offsets and types of fields in a NIfTI-1 header.
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET = (40, "<8h"), (70, "<h"), (72, "<h"), (76, "<8f"), (108, "<f")
QFORM_CODE, SFORM_CODE, QUATERNION, SROW, MAGIC = (252, "<h"), (254, "<h"), (256, "<3f"), (280, "<12f"), (344, "4s")
INFINITE, NAN = float("inf"), float("nan")


def good(path: Path, *, seed: int = 0, shape=SHAPE) -> bytes:
    """Writes a good image and returns its uncompressed bytes."""
    save(blob(shape, seed=seed)[0], AFFINE, path)
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def write(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)


def volume(array: np.ndarray) -> Callable[[Path], object]:
    return lambda path: save(array, AFFINE, path)


def image_with(value: float) -> np.ndarray:
    image = blob(SHAPE, seed=0)[0].astype(np.float32)
    image[3, 4, 5] = value
    return image


def header(*changes: tuple[tuple[int, str], tuple]) -> Callable[[Path], None]:
    """A good file in whose header some fields are changed."""

    def make(path: Path) -> None:
        content = bytearray(good(path))
        for (offset, kind), values in changes:
            struct.pack_into(kind, content, offset, *values)
        write(path, bytes(content))

    return make


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def part(fraction: float) -> Callable[[Path], None]:
    """The beginning of a good file, as after an interrupted copy."""

    def make(path: Path) -> None:
        good(path, shape=(48, 48, 32))  # too large for one read
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * fraction)])

    return make


def flipped_bit(path: Path) -> None:
    good(path, shape=(48, 48, 32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def swapped_suffix(path: Path) -> None:
    """Compressed content under a plain name or the other way round."""
    other = path.with_name("other.nii" if path.name.endswith(".gz") else "other.nii.gz")
    good(other)
    other.rename(path)


def nifti2_of_terabytes(path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(blob(SHAPE, seed=0)[0], AFFINE), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<8q", content, 16, 3, 2**31, 2**31, 2**20, 1, 1, 1, 1)
    path.write_bytes(bytes(content))


def unreadable(path: Path) -> None:
    good(path)
    path.chmod(0)


def colours(path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, kind), AFFINE), path)


HUGE = (3, 32767, 32767, 32767, 1, 1, 1, 1)
NO_AFFINE = ((SFORM_CODE, (0,)), (QFORM_CODE, (0,)))

# Name of the case, suffix, how the image is made, what its message says.
BAD_IMAGES = [
    ("truncated", ".nii.gz", part(0.7), "cannot be read (EOFError"),
    ("truncated-in-the-header", ".nii.gz", raw(gzip.compress(b"\0" * 352)[:15]), "cannot be read (EOFError"),
    ("truncated-plain", ".nii", part(0.7), "cannot be read: its header announces 147,808 bytes"),
    ("header-alone", ".nii", lambda path: write(path, good(path)[:352]), "and the file has 352"),
    ("flipped-bit", ".nii.gz", flipped_bit, "cannot be read ("),
    ("empty", ".nii.gz", raw(b""), "is empty"),
    ("empty-archive", ".nii.gz", raw(gzip.compress(b"")), "not a readable NIfTI file (0 bytes"),
    ("text", ".nii.gz", raw(b"<html>404</html>"), "not a gzip file although its name ends in .gz"),
    ("text-in-gzip", ".nii.gz", raw(gzip.compress(b"lorem ipsum " * 99)), "not a readable NIfTI file (its magic is"),
    ("short-text", ".nii", raw(b"not an image"), "not a readable NIfTI file (12 bytes"),
    ("noise", ".nii", raw(np.random.default_rng(0).bytes(4096)), "not a readable NIfTI file"),
    ("magic", ".nii.gz", header((MAGIC, (b"nix\0",))), "its magic is b'nix'"),
    ("half-of-a-pair", ".nii", header((MAGIC, (b"ni1\0",))), "header of a pair of files"),
    ("plain-called-gz", ".nii.gz", swapped_suffix, "not a gzip file although its name ends in .gz"),
    ("gzip-called-nii", ".nii", swapped_suffix, "is compressed: rename it to end in .nii.gz"),
    ("2d", ".nii.gz", volume(blob(SHAPE, seed=0)[0][:, :, 0]), "has shape (20, 18): images are 3D"),
    ("5d", ".nii.gz", volume(np.ones((4, 4, 4, 1, 3))), "has shape (4, 4, 4, 1, 3): images are 3D"),
    ("two-channels", ".nii.gz", volume(np.random.default_rng(0).random((*SHAPE, 2))), "has 2 channel(s) and the"),
    ("nan", ".nii.gz", volume(image_with(NAN)), "voxels that are NaN or infinite"),
    ("infinite", ".nii.gz", volume(image_with(INFINITE)), "voxels that are NaN or infinite"),
    ("beyond-float32", ".nii.gz", volume(image_with(1).astype(float) * 1e300), "voxels that are NaN or infinite"),
    ("all-nan", ".nii.gz", volume(np.full(SHAPE, np.nan, np.float32)), "voxels that are NaN or infinite"),
    ("all-zero", ".nii.gz", volume(np.zeros(SHAPE, np.int16)), "in every voxel"),
    ("all-seven", ".nii.gz", volume(np.full(SHAPE, 7.0)), "in every voxel"),
    ("colours", ".nii.gz", colours, "save one number per voxel"),
    ("complex", ".nii.gz", volume(np.ones(SHAPE, np.complex64)), "has voxels of the type complex64"),
    ("terabytes", ".nii", header((DIM, HUGE)), "announces 70,362,301,923,678"),
    ("terabytes-in-gzip", ".nii.gz", header((DIM, HUGE)), "announces 70,362,301,923,678"),
    ("terabytes-nifti-2", ".nii", nifti2_of_terabytes, "cannot be read: its header announces"),
    ("gigabytes", ".nii.gz", header((DIM, (3, 900, 900, 900, 1, 1, 1, 1))), "announces 1,458,000,352 bytes"),
    ("negative-extent", ".nii.gz", header((DIM, (3, 20, -18, 17, 1, 1, 1, 1))), "header has the shape (20, -18, 17)"),
    ("zero-extent", ".nii.gz", header((DIM, (3, 20, 0, 17, 1, 1, 1, 1))), "header has the shape (20, 0, 17)"),
    ("no-axes", ".nii.gz", header((DIM, (0, 20, 18, 17, 1, 1, 1, 1))), "not a readable NIfTI file"),
    ("forty-axes", ".nii.gz", header((DIM, (40, 20, 18, 17, 1, 1, 1, 1))), "not a readable NIfTI file"),
    ("datatype", ".nii.gz", header((DATATYPE, (999,))), "unknown data type"),
    ("bitpix", ".nii.gz", header((BITPIX, (64,))), "64 bits per voxel and the data type int16"),
    ("offset-nan", ".nii.gz", header((VOX_OFFSET, (NAN,))), "vox_offset nan"),
    ("offset-negative", ".nii.gz", header((VOX_OFFSET, (-1e9,))), "vox_offset -1e+09"),
    ("offset-huge", ".nii.gz", header((VOX_OFFSET, (3e38,))), "vox_offset 3e+38"),
    ("offset-behind-the-end", ".nii", header((VOX_OFFSET, (65536,))), "cannot be read: its header announces"),
    ("spacing-zero", ".nii.gz", header((PIXDIM, (1, 1, 0, 2, 0, 0, 0, 0)), *NO_AFFINE), "(1.0, 0.0, 2.0) and no sform"),
    ("spacing-nan", ".nii.gz", header((PIXDIM, (1, NAN, 1, 2, 0, 0, 0, 0)), *NO_AFFINE), "nan, 1.0, 2.0) and no sform"),
    ("affine-singular", ".nii.gz", header((SROW, (1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0))), "has a singular affine"),
    ("affine-zero", ".nii.gz", header((SROW, (0,) * 12)), "has a singular affine"),
    ("affine-nan", ".nii.gz", header((SROW, (NAN,) * 12)), "has an affine that is not finite"),
    ("quaternion", ".nii.gz", header((SFORM_CODE, (0,)), (QFORM_CODE, (1,)), (QUATERNION, (3, 3, 3))), "NIfTI file"),
    ("folder", ".nii.gz", lambda path: path.mkdir(), "is a folder"),
    ("loop", ".nii.gz", lambda path: path.symlink_to(path), "cannot be opened ("),
    ("broken-link", ".nii.gz", lambda path: path.symlink_to("nowhere.nii.gz"), "does not exist"),
    ("pipe", ".nii.gz", lambda path: os.mkfifo(path), "is not a regular file"),
    ("forbidden", ".nii.gz", unreadable, "may not be opened (PermissionError"),
]


def as_parameters(table):
    root = pytest.mark.skipif(os.geteuid() == 0, reason="root may open every file")
    return [pytest.param(*row[1:], id=row[0], marks=[root] if row[0].endswith("forbidden") else []) for row in table]


def write_cases(folder: Path, *, image: str = "images/0.nii.gz", label: str | None = "labels/0.nii.gz") -> Path:
    """A data set of three cases, two of them good; the first is made of files that the test adds."""
    entries = []
    for number in (1, 2):
        voxels, mask = blob(SHAPE, seed=number)
        entry = {"image": f"images/{number}.nii.gz", "label": f"labels/{number}.nii.gz"}
        save(voxels, AFFINE, folder / entry["image"])
        save(mask, AFFINE, folder / entry["label"])
        entries.append(entry)
    first = {"image": image} if label is None else {"image": image, "label": label}
    (folder / "dataset.json").write_text(json.dumps({"training": [first, *entries]}))
    return folder


def errors_of(folder: Path, **options) -> list[str]:
    settings = {"in_channels": 1, "label_coding": LabelCoding(1), "num_labeled": 3, "output_dir": folder / "out"}
    preflight = Preflight(dataset_dir=folder, **{**settings, **options})
    report = preflight.report()
    if report.errors:
        with pytest.raises(DataError) as caught:
            preflight.run()
        assert str(report.errors[0]) in str(caught.value)
    assert all(problem.remedy and not problem.remedy.endswith(".") for problem in report.problems)
    return [str(problem) for problem in report.errors]


@pytest.mark.parametrize("suffix, make, message", as_parameters(BAD_IMAGES))
def test_bad_image_is_one_error_with_its_file_before_training(tmp_path, suffix, make, message):
    path = write_cases(tmp_path, image=f"images/0{suffix}") / "images" / f"0{suffix}"
    save(blob(SHAPE, seed=0)[1], AFFINE, tmp_path / "labels" / "0.nii.gz")
    make(path)
    (error,) = errors_of(tmp_path)
    assert error.startswith(f"{path} ") and message in error


def image_as_label(path: Path) -> None:
    save(blob(SHAPE, seed=0)[0], AFFINE, path)


BAD_LABELS = [
    ("missing", lambda path: None, "does not exist: correct dataset.json"),
    ("folder", lambda path: path.mkdir(), "is a folder"),
    ("text", raw(b"label"), "is not a readable NIfTI file"),
    ("truncated", part(0.7), "cannot be read"),
    ("larger", volume(np.ones((24, 18, 17), np.uint8)), "has shape (24, 18, 17) and its image"),
    ("transposed", volume(np.ones((17, 18, 20), np.uint8)), "has shape (17, 18, 20) and its image"),
    ("one-hot", volume(np.ones((*SHAPE, 2), np.uint8)), "has shape (20, 18, 17, 2) and its image"),
    ("2d", volume(np.ones(SHAPE[:2], np.uint8)), "has shape (20, 18)"),
    ("fractions", volume(blob(SHAPE, seed=0)[1] * 0.5), "label values [0.5], which are not whole numbers"),
    ("negative", volume(-blob(SHAPE, seed=0)[1].astype(np.int16)), "label values [-1] and [0, 1] are expected"),
    ("nan", volume(np.where(blob(SHAPE, seed=0)[1], np.nan, 0)), "voxels that are NaN or infinite"),
    ("of-255", volume(blob(SHAPE, seed=0)[1] * 255), "label values [255] and [0, 1] are expected: set num_classes"),
    ("the-image", image_as_label, "that image and label are not swapped"),
    (
        "elsewhere",
        lambda path: save(blob(SHAPE, seed=0)[1], np.diag([1.0, 1.2, 2.0, 1.0]), path),
        "mm away from its image",
    ),
    ("terabytes", header((DIM, HUGE)), "announces 70,362,301,923,678"),
]


@pytest.mark.parametrize("make, message", as_parameters(BAD_LABELS))
def test_bad_label_is_one_error_with_its_file_before_training(tmp_path, make, message):
    path = write_cases(tmp_path) / "labels" / "0.nii.gz"
    good(tmp_path / "images" / "0.nii.gz")
    make(path)
    (error,) = errors_of(tmp_path)
    assert error.startswith(f"{path} ") and message in error


def test_swapped_files_are_an_error_that_names_the_swap(tmp_path):
    write_cases(tmp_path, image="labels/0.nii.gz", label="images/0.nii.gz")
    save(blob(SHAPE, seed=0)[0], AFFINE, tmp_path / "images" / "0.nii.gz")
    save(blob(SHAPE, seed=0)[1], AFFINE, tmp_path / "labels" / "0.nii.gz")
    (error,) = errors_of(tmp_path)
    assert error.startswith(f"{tmp_path}/images/0.nii.gz has label values") and "not swapped" in error


@pytest.mark.parametrize(
    "image, message",
    [
        ("i" * 300 + ".nii.gz", "cannot be opened (OSError: [Errno 36] File name too long"),
        ("images/\0.nii.gz", "cannot be opened (ValueError: embedded null byte)"),
        ("images/1.nii.gz/0.nii.gz", "cannot be opened (NotADirectoryError"),
        ("images", "is a folder"),
        ("/dev/zero", "/dev/zero is not a regular file"),
    ],
    ids=["long", "null-byte", "below-a-file", "folder", "device"],
)
def test_path_that_no_file_can_have_is_one_error(tmp_path, image, message):
    write_cases(tmp_path, image=image)
    save(blob(SHAPE, seed=0)[1], AFFINE, tmp_path / "labels" / "0.nii.gz")
    (error,) = errors_of(tmp_path)
    assert message in error


def test_case_without_a_label_among_the_labeled_ones_is_refused_by_the_list(tmp_path):
    with pytest.raises(DataError, match="0.nii.gz has none"):
        errors_of(write_cases(tmp_path, label=None))


@pytest.mark.parametrize("name", ["Herz-Vorhof ä 心房 №1", "x" * 247, "a.b.c", " ", "quote'\"$HOME;#"])
def test_odd_names_are_no_errors(tmp_path, name):
    write_cases(tmp_path, image=f"images/{name}.nii.gz")
    good(tmp_path / "images" / f"{name}.nii.gz")
    save(blob(SHAPE, seed=0)[1].astype(np.float32), AFFINE, tmp_path / "labels" / "0.nii.gz")
    assert errors_of(tmp_path) == []


def test_name_that_is_no_text_is_printed_and_written(tmp_path, capsys):
    path = write_cases(tmp_path) / os.fsdecode(b"images/\xff.nii.gz")
    path.write_bytes(b"")
    text = (tmp_path / "dataset.json").read_text().replace("images/0", "images/\\udcff")
    (tmp_path / "dataset.json").write_text(text)
    save(blob(SHAPE, seed=0)[1], AFFINE, tmp_path / "labels" / "0.nii.gz")
    (error,) = errors_of(tmp_path)
    assert "\\udcff.nii.gz is empty" in error
    assert error in (tmp_path / "out" / "preflight.txt").read_text() and error in capsys.readouterr().out


# --- the plan, which comes before the preflight ---

# What a plan cannot judge before there are settings.
LEFT_TO_THE_PREFLIGHT = {"two-channels", "of-255"}
NO_PLAN = [(f"image-{row[0]}", True, *row[1:]) for row in BAD_IMAGES if row[0] not in LEFT_TO_THE_PREFLIGHT]
NO_PLAN += [
    (f"label-{row[0]}", False, ".nii.gz", *row[1:]) for row in BAD_LABELS if row[0] not in LEFT_TO_THE_PREFLIGHT
]


@pytest.mark.parametrize("is_image, suffix, make, _", as_parameters(NO_PLAN))
def test_no_plan_is_made_of_a_bad_file_which_is_named(tmp_path, is_image, suffix, make, _):
    bad = tmp_path / f"bad{suffix}"
    image, label = (save(array, AFFINE, tmp_path / f"{n}.nii.gz") for n, array in enumerate(blob(SHAPE, seed=0)))
    make(bad)
    case = {"image": str(bad), "label": label} if is_image else {"image": image, "label": str(bad)}
    with pytest.raises(DataError) as caught:
        read_fingerprints([{"image": image, "label": label}, case])
    assert str(caught.value).startswith(f"1 problem(s) in 2 cases:\n  {bad} ")


# --- inference ---


def infer(workflow, folder: Path, output: Path, **overrides) -> str:
    """Segments a folder with the network that finds what is brighter than the mean; returns the error's text."""
    bundle = workflow(
        INFERENCE,
        workflow_type="inference",
        input_dir=str(folder),
        output_dir=str(output),
        spacing=None,
        patch_size=[16, 16, 16],
        stride=[16, 16, 16],
        network_def={"_target_": "torch.nn.Sigmoid"},
        device="$torch.device('cpu')",
        **{"handlers#0#_disabled_": True, "largest_component": False, **overrides},
    )
    bundle.initialize()
    with pytest.raises(RuntimeError) as caught:
        bundle.run()
    chain = [caught.value]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return " ".join(str(error) for error in chain if isinstance(error, DataError))


def test_bad_images_of_a_folder_are_listed_and_the_good_ones_are_segmented(workflow, tmp_path):
    folder, output = tmp_path / "new", tmp_path / "masks"
    folder.mkdir()
    names = {f"good ä 心房{n}.nii.gz": n for n in range(2)} | {"zzz.nii": 2}
    for name, seed in names.items():
        good(folder / name, seed=seed)
    table = [row for row in BAD_IMAGES if row[0] != "forbidden" or os.geteuid()]
    messages = {str(folder / f"{name}{suffix}"): message for name, suffix, _, message in table}
    for name, suffix, make, _ in table:
        make(folder / f"{name}{suffix}")
    long_name = str(folder / ("x" * 247 + ".nii.gz"))
    good(Path(long_name))
    messages[long_name] = "File name too long"
    text = infer(workflow, folder, output)
    assert f"{len(messages)} of {len(messages) + 3} cases failed; the others are complete" in text
    with (output / "failures.csv").open(newline="", encoding="utf-8") as file:
        reasons = {row["case"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons.keys() == messages.keys()
    for path, message in messages.items():
        assert Path(path).name.removesuffix(".nii.gz") in reasons[path]
        assert message in reasons[path], path
        assert ": " in reasons[path].partition(path)[2] or path == long_name  # the remedy
    assert "shorten the name of the input" in reasons[long_name]
    expected = {name.removesuffix(".gz").removesuffix(".nii"): seed for name, seed in names.items()}
    masks = {path.name.removesuffix("_seg.nii.gz"): path for path in output.glob("*_seg.nii.gz")}
    assert masks.keys() == expected.keys()
    for name, seed in expected.items():
        image = blob(SHAPE, seed=seed)[0]
        np.testing.assert_array_equal(np.asarray(nibabel.load(masks[name]).dataobj), image > image.mean())


def test_folder_in_which_nothing_is_brighter_than_its_intensity_window_is_reported(workflow, tmp_path):
    (tmp_path / "new").mkdir()
    good(tmp_path / "new" / "a.nii.gz")
    infer(workflow, tmp_path / "new", tmp_path / "masks", intensity_window=[5000, 6000])
    assert (
        "a.nii.gz is the same in every voxel, or everywhere outside intensity_window"
        in (tmp_path / "masks" / "failures.csv").read_text()
    )


# --- as real processes ---


def assert_ends_in_one_line(finished, text: str) -> None:
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert text in finished.stderr.rsplit("\nerror: ", 1)[1]


def test_training_on_bad_files_ends_in_one_line_and_lists_them_all(tmp_path):
    folder = write_dataset(tmp_path / "data")
    header((DIM, HUGE))(folder / "images" / "training_0.nii.gz")
    part(0.5)(folder / "images" / "training_5.nii.gz")  # unlabeled
    (folder / "labels" / "training_1.nii.gz").unlink()
    part(0.5)(folder / "images" / "test_0.nii.gz")  # training does not use it
    finished = run_bundle("training", TRAIN, **small(folder, tmp_path / "out"))
    first = f"{folder}/images/training_0.nii.gz cannot be read: its header announces 70,362,301,923,678"
    assert_ends_in_one_line(finished, f"the preflight found 3 errors, all listed in {tmp_path}/out/preflight.txt")
    assert_ends_in_one_line(finished, first)
    report = json.loads((tmp_path / "out" / "preflight.json").read_text())
    names = [(Path(error["file"]).parent.name, Path(error["file"]).name) for error in report["errors"]]
    images, labels = "images", "labels"
    assert sorted(names) == [
        (images, "training_0.nii.gz"),
        (images, "training_5.nii.gz"),
        (labels, "training_1.nii.gz"),
    ]
    assert [Path(w["file"]).name for w in report["warnings"] if w["check"] == "truncated"] == ["test_0.nii.gz"]
    assert not (tmp_path / "out" / "models").exists()


# --- fuzz ---


@pytest.mark.long
def test_no_header_brings_anything_but_a_message_or_a_volume_as_large_as_its_file(tmp_path):
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
    from monai.transforms import LoadImage

    from scripts.data.contents import Contents, inspect
    from scripts.data.problems import Problem

    plain = good(tmp_path / "start.nii")
    fields = {"<h": 2, "<f": 4, "<i": 4, "<q": 8, "B": 1}
    edges = {
        "<f": st.floats(width=32) | st.sampled_from([NAN, INFINITE, -INFINITE, 0.0, -1.0, 1e38]),
        "<h": st.integers(-(2**15), 2**15 - 1) | st.sampled_from([0, -1, 1, 7, 8, 348, 540, 32767]),
        "<i": st.integers(-(2**31), 2**31 - 1) | st.sampled_from([348, 540]),
        "<q": st.integers(-(2**63), 2**63 - 1),
        "B": st.integers(0, 255),
    }
    change = st.sampled_from(list(fields)).flatmap(
        lambda kind: st.tuples(st.just(kind), st.integers(0, 352 - fields[kind]), edges[kind])
    )

    @settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(change, min_size=1, max_size=4), st.integers(0, len(plain)), st.booleans())
    def fuzz(changes, length, compressed):
        content = bytearray(plain)
        for kind, offset, value in changes:
            struct.pack_into(kind, content, offset, value)
        content = bytes(content[:length] if length < 352 else content)
        path = tmp_path / ("fuzzed.nii.gz" if compressed else "fuzzed.nii")
        write(path, content)
        finding = inspect((str(path), False))
        if isinstance(finding, Problem):
            assert finding.file == str(path) and finding.what and finding.remedy
            return
        assert isinstance(finding, Contents)
        assert np.prod([float(n) for n in finding.header.shape]) <= len(content)
        assert np.isfinite(finding.header.affine).all() and np.linalg.det(finding.header.affine) != 0
        # What passes can be loaded as the configs do it, on the grid that nibabel gives.
        loaded = LoadImage(reader="scripts.data.NiftiReader", image_only=True)(path)
        assert tuple(loaded.shape) == finding.header.shape
        assert torch.allclose(loaded.affine, torch.as_tensor(nibabel.load(path).affine))

    fuzz()


def test_table_is_as_long_as_it_should_be():
    assert len(BAD_IMAGES) + len(BAD_LABELS) >= 30
    assert len({row[0] for row in BAD_IMAGES}) == len(BAD_IMAGES)
    assert (ROOT / "docs" / "preflight.md").is_file()
