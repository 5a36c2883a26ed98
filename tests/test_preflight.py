"""Tests of scripts/preflight and preflight.json: what is an error, what a warning, and that no file is read twice."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import LABELED, ROOT, blob, las, merged, run_bundle, save, small, write_dataset
from monai.transforms import RandRotate90d

from scripts.data import DataError, LabelCoding, NiftiReader, check_cases, contents
from scripts.data.machine import free_memory, processors, total_memory
from scripts.networks import VNet
from scripts.preflight import Preflight, grid, machine, preflight, whole_dataset
from scripts.setting_checks import UnknownIdError
from scripts.workflow import Workflow

TRAIN, PREFLIGHT = "configs/train.json", "configs/preflight.json"
SHAPE = (20, 18, 17)
AFFINE = las((1.0, 1.2, 2.0))


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Forgets what other tests read."""
    monkeypatch.setattr(contents, "_found", {})


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The files whose voxels were read, in order."""
    paths = []
    original = contents.stored_voxels

    def remember(opened, path):
        paths.append(path)
        return original(opened, path)

    monkeypatch.setattr(contents, "stored_voxels", remember)
    return paths


def make(folder: Path, **changes: object) -> Preflight:
    settings = {"in_channels": 1, "label_coding": LabelCoding(1), "num_labeled": LABELED, "workers": 1}
    return Preflight(dataset_dir=folder, output_dir=folder / "out", **{**settings, **changes})


def found(report, level: str) -> list[tuple[str, str]]:
    """Check and file name of every problem of a level."""
    return [(p.check, Path(p.file).name) for p in report.problems if p.level == level]


def lists_of(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


# --- the report ---


def test_good_data_set_has_an_overview_and_no_problems(tiny, tmp_path, capsys):
    report = make(tiny).report()
    assert report.problems == []
    facts = report.overview
    assert facts["cases"] == {"labeled": 3, "unlabeled": 3, "validation": 1, "test": 2}
    assert facts["files"] == 3 * 2 + 3 + 1 * 2 + 2 * 2
    assert facts["shape"] == [[18, 20, 14], "to", [24, 26, 22]]
    assert facts["spacing (mm)"] == [[1.0, 1.0, 1.8], "to", [1.1, 1.2, 2.5]]
    assert facts["orientation"] == {"LAS": 9}
    assert facts["label values"] == [0, 1]


def test_cache_is_float32_on_the_networks_grid(tmp_path):
    folder = write_dataset(tmp_path, counts=(2, 1, 1))
    checks = make(folder, num_labeled=1)
    checks.report()
    files = {
        file: contents.inspect(file)
        for name in checks.lists
        for case in checks.lists[name]
        for file in [(case["image"], False), *([(case["label"], True)] if "label" in case else [])]
    }
    voxels = [24 * 22 * 20, 20 * 26 * 18, 22 * 20 * 14]  # labeled, unlabeled, validation; test is not cached
    training, validation = 4 * (2 * voxels[0] + voxels[1]), 4 * 2 * voxels[2]
    data = whole_dataset.WholeDataset(checks.lists, files)
    assert grid.Grid(data).cache_bytes() == (training + validation, 0)
    assert grid.Grid(data, cache_rate=0.25).cache_bytes() == (training / 4 + validation, training * 3 / 4)
    assert grid.Grid(data).mask_bytes() == 24 * 24 * 16


def test_report_is_printed_and_written_as_text_and_json(tiny_copy, capsys):
    (tiny_copy / "images" / "training_1.nii.gz").write_bytes(b"")
    shutil.copy(tiny_copy / "images" / "training_3.nii.gz", tiny_copy / "images" / "training_4.nii.gz")
    with pytest.raises(DataError) as caught:
        make(tiny_copy).run()
    path = tiny_copy / "images" / "training_1.nii.gz"
    assert str(caught.value) == (
        f"the preflight found 1 error, all listed in {tiny_copy}/out/preflight.txt; "
        f"the first: {path} is empty: copy the file again."
    )
    text = (tiny_copy / "out" / "preflight.txt").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "1 error\n  [file] " in text and "1 warning\n  [copies] " in text
    content = json.loads((tiny_copy / "out" / "preflight.json").read_text())
    assert content["errors"] == [
        {"check": "file", "file": str(path), "what": "is empty", "remedy": "copy the file again", "level": "error"}
    ]
    assert [warning["check"] for warning in content["warnings"]] == ["copies"]
    assert content["overview"]["cases"]["labeled"] == 3


def test_console_counts_what_the_files_list(tmp_path, capsys):
    folder = write_dataset(tmp_path, counts=(20, 0, 0))
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="found 20 errors"):
        make(folder).run()
    printed = capsys.readouterr().out
    assert printed.count("is empty") == 10 and "[file] and 10 more" in printed
    assert (folder / "out" / "preflight.txt").read_text().count("is empty") == 20


def test_warnings_do_not_stop(tiny_copy):
    path = tiny_copy / "labels" / "training_0.nii.gz"
    save(np.zeros(nibabel.load(path).shape, np.uint8), nibabel.load(path).affine, path)
    report = make(tiny_copy).run()
    assert (found(report, "error"), found(report, "warning")) == ([], [("empty label", "training_0.nii.gz")])


def test_errors_of_test_cases_stop_only_when_they_are_asked_for(tiny_copy):
    (tiny_copy / "images" / "test_1.nii.gz").write_bytes(b"")
    assert found(make(tiny_copy).run(test_stops=False), "warning") == [("file", "test_1.nii.gz")]
    with pytest.raises(DataError, match="test_1.nii.gz is empty"):
        make(tiny_copy).run()


def test_output_dir_that_cannot_be_made_is_named(tiny, tmp_path):
    (tmp_path / "file").touch()
    checks = Preflight(dataset_dir=tiny, output_dir=tmp_path / "file" / "out", workers=1)
    assert ("disk", "out") in found(checks.report(), "error")
    with pytest.raises(DataError, match=rf"output_dir {tmp_path}/file/out cannot be written"):
        checks.run()


def test_data_set_without_cases_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match=r"dataset\.json lists no case"):
        Preflight(dataset_dir=tmp_path, output_dir=tmp_path)


# --- which files are read ---


def test_no_file_is_read_twice_by_the_data_sets_that_follow(tiny, read):
    checks = make(tiny)
    checks.report()
    assert len(read) == len(set(read)) == 15
    checks.report()
    check_cases(checks.lists["labeled"], in_channels=1, label_coding=LabelCoding(1))
    check_cases(checks.lists["unlabeled"], in_channels=1)
    assert len(read) == 15


def test_file_that_changed_is_read_again(tiny_copy, read):
    checks = make(tiny_copy)
    checks.report()
    path = tiny_copy / "images" / "training_2.nii.gz"
    save(np.zeros(SHAPE, np.int16), AFFINE, path)
    os.utime(path, ns=(1, 1))
    del read[:]
    with pytest.raises(DataError, match="training_2.nii.gz is 0 in every voxel"):
        check_cases(checks.lists["labeled"], in_channels=1, label_coding=LabelCoding(1))
    assert read == [str(path)]


def test_clients_that_make_a_data_set_without_a_preflight_get_the_same_errors(tiny_copy):
    save(np.full((24, 22, 20), np.nan, np.float32), las((1.0, 1.2, 2.0)), tiny_copy / "images" / "training_0.nii.gz")
    checks = make(tiny_copy)
    with pytest.raises(DataError) as caught:
        check_cases(checks.lists["labeled"], in_channels=1, label_coding=LabelCoding(1))
    (error,) = checks.report().errors
    assert str(caught.value).splitlines() == ["1 problem(s) in 3 cases:", f"  {error}"]


def test_labels_of_unlabeled_cases_are_not_opened(tiny_copy, read):
    for number in (3, 4, 5):
        (tiny_copy / "labels" / f"training_{number}.nii.gz").write_bytes(b"")
    assert make(tiny_copy).report().problems == []
    assert [path for path in read if "/labels/training_" in path] == [
        str(tiny_copy / "labels" / f"training_{number}.nii.gz") for number in range(3)
    ]


def test_unlabeled_images_are_not_opened_for_a_training_without_them(tiny_copy, read):
    for number in (3, 4, 5):
        (tiny_copy / "images" / f"training_{number}.nii.gz").write_bytes(b"")
    assert make(tiny_copy, unlabeled_batch_size=0).report().problems == []
    assert len(make(tiny_copy).report().errors) == 3


# --- processes ---


def many(folder: Path) -> Path:
    write_dataset(folder, counts=(30, 2, 2))
    (folder / "images" / "training_7.nii.gz").write_bytes(b"")
    return folder


def test_processes_find_what_one_finds_in_the_same_order(tmp_path, monkeypatch):
    folder = many(tmp_path)
    alone = make(folder).report()
    monkeypatch.setattr(contents, "_found", {})
    assert found(alone, "error") == [("file", "training_7.nii.gz")]
    assert make(folder, workers=3).report().problems == alone.problems


@pytest.mark.long
def test_processes_may_be_spawned(tmp_path, monkeypatch):
    folder = many(tmp_path)
    alone = make(folder).report()
    monkeypatch.setattr(contents, "_found", {})
    spawned = make(folder, workers=2, start_method="spawn").report()
    assert spawned.problems == alone.problems
    facts = ("cases", "files", "shape", "spacing (mm)", "orientation", "label values", "cache (GB)")
    assert [spawned.overview[fact] for fact in facts] == [alone.overview[fact] for fact in facts]


def die(file: tuple[str, bool]) -> None:
    os._exit(9)


def test_process_that_is_killed_ends_in_a_message_with_the_remedy(tiny, monkeypatch):
    monkeypatch.setattr(preflight, "inspect", die)
    with pytest.raises(DataError, match="was killed, probably for want of memory"):
        make(tiny, workers=2, start_method="fork").report()


# --- cases in view of each other ---


def test_copy_in_another_list_is_an_error_however_it_is_stored(tiny_copy):
    source = nibabel.load(tiny_copy / "images" / "training_1.nii.gz")
    lists = lists_of(tiny_copy)
    lists["test"][0]["image"] = "images/copy.nii"
    (tiny_copy / "dataset.json").write_text(json.dumps(lists))
    save(source.get_fdata(), source.affine, tiny_copy / "images" / "copy.nii")  # float64, not compressed
    shutil.copy(tiny_copy / "labels" / "training_1.nii.gz", tiny_copy / "labels" / "test_0.nii.gz")
    report = make(tiny_copy).report(test_stops=False)
    assert found(report, "error") == [("copies", "copy.nii")]
    assert "(test) has the same voxels as" in str(report.errors[0]) and "training_1.nii.gz (labeled)" in str(
        report.errors[0]
    )


@pytest.mark.parametrize("number, level", [(1, "warning"), (4, "warning")], ids=["labeled", "unlabeled"])
def test_copy_within_training_is_a_warning(tiny_copy, number, level):
    for folder in ("images", "labels"):
        shutil.copy(tiny_copy / folder / "training_0.nii.gz", tiny_copy / folder / f"training_{number}.nii.gz")
    report = make(tiny_copy).report()
    assert (found(report, "error"), found(report, level)) == ([], [("copies", f"training_{number}.nii.gz")])


def test_images_that_differ_in_a_voxel_or_only_in_their_shape_are_no_copies(tmp_path):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    other = voxels.copy()
    other[1, 2, 3] += 1
    paths = [
        save(array, np.eye(4), tmp_path / f"{n}.nii")
        for n, array in enumerate((voxels, voxels.astype(np.float32), other, voxels.reshape(2, 4, 3, order="F")))
    ]
    digests = [contents.inspect((path, False)).digest for path in paths]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_labeled_cases_without_any_foreground_are_an_error(tiny_copy):
    for number in range(3):
        path = tiny_copy / "labels" / f"training_{number}.nii.gz"
        save(np.zeros(nibabel.load(path).shape, np.uint8), nibabel.load(path).affine, path)
    report = make(tiny_copy).report()
    assert [str(e) for e in report.errors] == [
        "labeled cases (3) have no foreground voxel at all: "
        "put cases with foreground first in 'training', or raise num_labeled."
    ]
    assert len(report.warnings) == 3


def test_class_that_no_labeled_case_has_is_a_warning(tiny):
    (warning,) = make(tiny, label_coding=LabelCoding(3)).report().problems
    assert warning.level == "warning" and "have no voxel of the label values [2, 3]" in str(warning)


def test_unlabeled_crops_without_an_unlabeled_case_are_a_warning(tiny):
    (warning,) = make(tiny, num_labeled=6, unlabeled_batch_size=2).report().problems
    assert (warning.check, warning.level) == ("unlabeled", "warning")
    assert str(warning).startswith("unlabeled_batch_size 2 finds no unlabeled case: every batch has labeled crops only")
    assert "'unlabeled' (--unlabeled_dir of" in str(warning)
    for settings in ({"num_labeled": 6, "unlabeled_batch_size": 0}, {"num_labeled": None}, {"num_labeled": 5}):
        assert make(tiny, **settings).report().problems == [], settings


@pytest.mark.parametrize("patch, found", [([16, 16, 16], []), ([16, 24, 16], ["patch"])])
def test_a_patch_that_the_network_does_not_take_is_an_error(tiny, patch, found):
    report = make(tiny, patch_size=patch, network=VNet(base_filters=2), in_channels=1).report()
    assert [problem.check for problem in report.errors] == found


def test_volumes_smaller_than_the_patch_are_named_in_one_warning(tiny):
    (warning,) = make(tiny, patch_size=[16, 16, 16]).report().problems
    assert (warning.check, warning.level) == ("patch", "warning")
    names = [str(tiny / "images" / f"{name}.nii.gz") for name in ("training_2", "test_1")]
    assert str(warning).startswith(
        f"2 of 9 images ({', '.join(names)}) are in at least one axis smaller than patch_size [16, 16, 16] "
        "(least (22, 20, 14)) and padded with zeros: lower patch_size"
    )
    assert make(tiny, patch_size=[14, 14, 14]).report().problems == []


@pytest.mark.parametrize(
    "affine, spacing, expected",
    [
        (las((1, 1, 2)), None, (10, 20, 30)),
        (las((1, 1, 2)), [2, 1, 1], (6, 20, 59)),  # as MONAI: round((n - 1) * old / new) + 1
        (las((1, 1, 2))[[2, 0, 1, 3]], None, (30, 10, 20)),
        (las((1, 1, 2))[[2, 0, 1, 3]], [1, 1, 1], (59, 10, 20)),
    ],
    ids=["as-it-is", "resampled", "permuted", "permuted-resampled"],
)
def test_shape_that_the_network_sees_is_monais(tmp_path, affine, spacing, expected):
    from monai.transforms import LoadImage, Orientation, Spacing

    header = contents.inspect((save(blob((10, 20, 30), seed=0)[0], affine, tmp_path / "a.nii"), False)).header
    assert grid.network_shape(header, spacing) == expected
    volume = Orientation(axcodes="RAS", labels=None)(LoadImage(ensure_channel_first=True)(tmp_path / "a.nii"))
    volume = Spacing(pixdim=spacing)(volume) if spacing else volume
    assert tuple(volume.shape[1:]) == expected


@pytest.mark.parametrize(
    "spacing, resampled, expected",
    [
        ((3.0, 0.75, 0.75), None, "up to 4 times (3 and 0.75 mm)"),
        ((0.75, 3.0, 0.75), None, "up to 4 times (0.75 and 3 mm)"),
        ((1.0, 1.0, 1.0), [1, 2, 1], "up to 2 times (1 and 2 mm)"),
        ((3.0, 0.8, 0.8), [1, 1, 1], None),
        ((0.8, 0.8, 5.0), None, None),
        ((1.5, 1.0, 1.0), None, None),
    ],
)
def test_quarter_turns_that_swap_thick_and_thin_are_a_warning_and_flips_are_not(tmp_path, spacing, resampled, expected):
    lists = {"training": []}
    for n in range(2):
        image, label = blob(SHAPE, seed=n)
        entry = {"image": f"{n}.nii.gz", "label": f"{n}_seg.nii.gz"}
        save(image, las(spacing), tmp_path / entry["image"])
        save(label, las(spacing), tmp_path / entry["label"])
        lists["training"].append(entry)
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    parser = merged(TRAIN)
    augmentation = parser.get_parsed_content("augmentation")
    settings = {"num_labeled": 1, "spacing": resampled}
    flips = [part for part in augmentation if not isinstance(part, RandRotate90d)]
    for harmless in (None, [], flips):
        assert make(tmp_path, augmentation=harmless, **settings).report().problems == []
    problems = make(tmp_path, augmentation=augmentation, **settings).report().problems
    if expected is None:
        assert problems == []
        return
    (warning,) = problems
    assert (warning.check, warning.level) == ("augmentation", "warning")
    assert f"turns 2 of 2 images about, whose voxels along axes 0 and 1 differ by {expected}" in str(warning)


def test_unusual_voxel_size_is_a_warning_unless_all_are_resampled(tiny_copy):
    for folder in ("images", "labels"):
        path = tiny_copy / folder / "training_0.nii.gz"
        save(np.asarray(nibabel.load(path).dataobj), las((1.0, 1.0, 5.0)), path)
    (warning,) = make(tiny_copy).report().problems
    assert "training_0.nii.gz is of another voxel size than the median [1.0, 1.0, 2.0] mm" in str(warning)
    assert make(tiny_copy, spacing=[1, 1, 1]).report().problems == []


# --- headers ---


def header_warnings(tmp_path: Path, change) -> list[str]:
    folder = write_dataset(tmp_path, counts=(2, 0, 0))
    for name in ("images", "labels"):
        path = folder / name / "training_0.nii.gz"
        image = nibabel.load(path)
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
        change(image)
        nibabel.save(image, path)
    report = make(folder, num_labeled=1).report()
    assert report.errors == []
    return [str(warning) for warning in report.warnings if "/images/" in warning.file]


def test_header_of_a_usual_file_brings_no_warning(tmp_path):
    assert header_warnings(tmp_path, lambda image: image.set_qform(image.affine, code=1)) == []


def test_forms_that_disagree_are_a_warning_that_says_which_is_used(tmp_path):
    moved = las((1.0, 1.2, 2.0), origin=(30.0, -20.0, 25.0))
    (warning,) = header_warnings(tmp_path, lambda image: image.set_qform(moved, code=1))
    assert "has an sform and a qform that lie 15.0 mm apart; the sform is used, as in nibabel" in warning


def test_pixdim_that_disagrees_with_the_sform_is_a_warning(tmp_path):
    def change(image):
        image.header["pixdim"][1:4] = 1

    (warning,) = header_warnings(tmp_path, change)
    assert "has pixdim (1.0, 1.0, 1.0) and voxels of (1.0, 1.2, 2.0) mm by its sform; the sform is used" in warning


def test_unit_other_than_mm_is_a_warning(tmp_path):
    (warning,) = header_warnings(tmp_path, lambda image: image.header.set_xyzt_units("meter"))
    assert "gives its voxel size in metres, which is read as mm: write it in mm." in warning


def test_header_without_orientation_is_a_warning(tmp_path):
    def change(image):
        image.set_qform(None, code=0)
        image.set_sform(None, code=0)

    (warning,) = header_warnings(tmp_path, change)
    assert "does not say how it lies (sform_code and qform_code are 0)" in warning


def test_modalities_on_different_grids_are_an_error(tiny_copy):
    lists = lists_of(tiny_copy)
    for entry in (entry for entries in lists.values() for entry in entries):
        entry["image"] = [entry["image"], entry["image"].replace("images", "second")]
    (tiny_copy / "dataset.json").write_text(json.dumps(lists))
    shutil.copytree(tiny_copy / "images", tiny_copy / "second")
    path = tiny_copy / "second" / "training_4.nii.gz"
    save(np.asarray(nibabel.load(path).dataobj), las((1.0, 1.0, 1.0)), path)
    (error,) = make(tiny_copy, in_channels=2).report().errors
    assert str(error).startswith(f"{path} is not on the grid of {tiny_copy}/images/training_4.nii.gz")


def test_decathlon_test_list_without_labels_is_a_warning(tiny_copy):
    lists = lists_of(tiny_copy)
    lists["test"] = [entry["image"] for entry in lists["test"]]
    (tiny_copy / "dataset.json").write_text(json.dumps(lists))
    report = make(tiny_copy).report()
    assert (report.errors, found(report, "warning")) == ([], [("label", f"test_{n}.nii.gz") for n in range(2)])


def test_without_settings_the_labels_decide_who_is_labeled_and_only_impossible_values_are_errors(tiny_copy):
    lists = lists_of(tiny_copy)
    del lists["training"][1]["label"]
    (tiny_copy / "dataset.json").write_text(json.dumps(lists))
    label = 9 * blob((24, 22, 20), seed=0)[1].astype(np.int16)
    path = tiny_copy / "labels" / "training_0.nii.gz"
    save(label, las((1.0, 1.2, 2.0)), path)
    unknown = {"in_channels": None, "label_coding": None, "num_labeled": None}
    report = make(tiny_copy, **unknown).report()
    assert report.problems == []
    assert report.overview["cases"] == {"labeled": 5, "unlabeled": 1, "validation": 1, "test": 2}
    assert report.overview["label values"] == [0, 1, 9]
    save(-label, las((1.0, 1.2, 2.0)), path)
    assert found(make(tiny_copy, **unknown).report(), "error") == [("label values", "training_0.nii.gz")]


# --- the machine ---


@pytest.mark.parametrize(
    "cache, free, total, level",
    [(80, 100, 200, None), (81, 100, 200, "warning"), (200, 100, 200, "warning"), (201, 100, 200, "error")],
)
def test_cache_beyond_the_memory_is_an_error_and_beyond_most_of_the_free_a_warning(cache, free, total, level):
    problems = machine.memory_problems(cache, free=free, total=total)
    assert [problem.level for problem in problems] == ([level] if level else [])
    assert all("cache_rate" in problem.remedy for problem in problems)


def test_a_cache_of_a_part_counts_as_a_part(tiny, monkeypatch):
    whole = make(tiny).report().overview["cache (GB)"]
    # Between what the validation cases take, which are always in memory, and all.
    monkeypatch.setattr(preflight, "total_memory", lambda: 150_000)
    monkeypatch.setattr(preflight, "free_memory", lambda: 150_000)
    assert ("memory", "the cases") in found(make(tiny).report(), "error")
    assert found(make(tiny, cache_rate=0).report(), "error") == []
    assert whole == make(tiny).report().overview["cache (GB)"]


def test_nothing_is_said_of_memory_that_is_not_known():
    assert machine.memory_problems(10**15, free=None, total=None) == []


@pytest.mark.parametrize(
    "free, masks, level",
    [(4 * 2**30, 0, None), (2**30, 0, "warning"), (50 * 2**20, 0, "error"), (4 * 2**30, 3 * 2**30, "warning")],
)
def test_full_disk_is_an_error_and_a_nearly_full_one_a_warning(tmp_path, monkeypatch, free, masks, level):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(2**40, 0, free) if folder == tmp_path else None)
    problems = machine.disk_problems(tmp_path / "not" / "there", needed=masks)
    assert [problem.level for problem in problems] == ([level] if level else [])


def test_memory_and_processors_of_this_machine_are_known():
    assert 0 < free_memory() <= total_memory()
    assert 1 <= processors() <= os.cpu_count()


# --- the reader that training and inference use ---


def test_reader_refuses_what_the_checks_refuse(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"text")
    reader = NiftiReader()
    with pytest.raises(DataError, match="a.nii.gz is not a readable NIfTI file"):
        reader.get_data(reader.read(path))


# --- the configs ---


def run_in_process(workflow, *files: str, run_id: str, **overrides) -> None:
    bundle = workflow(*files, run_id=run_id, **overrides)
    bundle.initialize()
    bundle.run()


def report_of(folder: Path) -> dict:
    return json.loads((folder / "preflight.json").read_text())


def test_ids_of_preflight_json_say_the_same_as_train_json():
    train = json.loads((ROOT / TRAIN).read_text())
    alone = json.loads((ROOT / PREFLIGHT).read_text())
    for key in ("bundle_root", "dataset_dir", "output_dir"):
        assert alone[key] == train[key]
    assert alone["+preflight_checks"].items() <= train["preflight_checks"].items()


def test_overlays_decide_what_the_preflight_expects(workflow, tmp_path):
    folder = write_dataset(tmp_path / "data", num_classes=2)
    settings = {"num_classes": 2, "num_labeled": 2, "patch_size": [32, 16, 16], "splits": {"test": [4, 6]}}
    (tmp_path / "overlay.json").write_text(json.dumps(settings))
    overrides = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "out")}
    run_in_process(workflow, TRAIN, str(tmp_path / "overlay.json"), PREFLIGHT, run_id="preflight", **overrides)
    report = report_of(tmp_path / "out")
    assert report["overview"]["cases"] == {"labeled": 2, "unlabeled": 2, "validation": 1, "test": 2}
    assert report["errors"] == [] and [warning["check"] for warning in report["warnings"]] == ["patch"]
    with pytest.raises(RuntimeError):
        run_in_process(workflow, TRAIN, PREFLIGHT, run_id="preflight", **overrides, num_labeled=2)  # one class
    assert {error["check"] for error in report_of(tmp_path / "out")["errors"]} == {"label values"}


@pytest.mark.parametrize("run_id, settings", [("training", {"run_preflight": False}), ("run", {})])
def test_run_of_clients_and_a_switched_off_training_have_no_preflight(workflow, tiny, tmp_path, run_id, settings):
    run_in_process(workflow, TRAIN, run_id=run_id, **small(tiny, tmp_path, max_iterations=1, **settings))
    assert (tmp_path / "models" / "model.pt").is_file()
    assert not (tmp_path / "preflight.json").exists()


def test_training_starts_with_the_preflight_and_reads_no_file_again_to_check_it(workflow, tiny, tmp_path, read):
    run_in_process(workflow, TRAIN, run_id="training", **small(tiny, tmp_path, max_iterations=1))
    assert report_of(tmp_path)["errors"] == []
    assert len(read) == len(set(read)) == 15  # test cases included
    assert (tmp_path / "models" / "model.pt").is_file()


@pytest.mark.parametrize("order", [(PREFLIGHT, "{overlay}"), ("{overlay}", PREFLIGHT)], ids=["after", "before"])
def test_overlay_without_train_json_is_refused_instead_of_having_no_effect(tmp_path, order):
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"about": "mine", "num_classes": 2, "patch_size": [32, 32, 32]}))
    files = [str(ROOT / name) if name == PREFLIGHT else str(overlay) for name in order]
    options: dict = {"run_id": "preflight", "logging_file": False}
    with pytest.raises(UnknownIdError, match="^num_classes, patch_size would have no effect"):
        Workflow(files, **options)
    Workflow([str(ROOT / TRAIN), *files], **options)
    Workflow(str(ROOT / PREFLIGHT), **options, **{"preflight_checks#patch_size": [32, 32, 32]})


def test_preflight_json_alone_ends_in_one_line_with_exit_status_1_on_an_error(tiny_copy, tmp_path):
    (tiny_copy / "images" / "training_5.nii.gz").write_bytes(b"")
    finished = run_bundle("preflight", PREFLIGHT, dataset_dir=tiny_copy, output_dir=tmp_path / "out")
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert "the preflight found 1 error" in finished.stderr.rsplit("\nerror: ", 1)[1]
    assert "[file]" in finished.stdout and "15/15" not in finished.stdout
    assert report_of(tmp_path / "out")["overview"]["cases"]["labeled"] == 6


# --- intensities ---


def spoil_image(folder: Path, change) -> Path:
    """Applies ``change`` to the voxels, float32, of one labeled image."""
    path = folder / "images" / "training_1.nii.gz"
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    save(change(voxels), image.affine, path)
    return folder


@pytest.mark.parametrize("value", [1e30, -1e9, 3e7])
def test_single_voxels_that_flatten_an_image_are_an_error_unless_they_are_clipped(tiny_copy, value):
    def change(voxels):
        voxels.flat[1000] = value
        return voxels

    folder = spoil_image(tiny_copy, change)
    (problem,) = make(folder).report().errors
    assert (problem.check, Path(problem.file).name) == ("intensities", "training_1.nii.gz")
    assert f"{value:g}" in problem.what
    assert make(folder, intensity_window=[0, 500]).report().problems == []


def test_far_voxels_that_leave_the_others_their_contrast_are_none(tiny_copy):
    """The bright voxels of an implant, and a small bright object in a dark volume."""

    def implant(voxels):
        voxels[3:6, 3:6, 3:6] = 3000
        return voxels

    assert make(spoil_image(tiny_copy, implant)).report().problems == []

    def small(voxels):
        return np.where(voxels > voxels.max() - 1, 1000, np.random.default_rng(0).normal(0, 1, voxels.shape))

    assert make(spoil_image(tiny_copy, small)).report().errors == []


@pytest.mark.parametrize("channel", [0, 1])
def test_constant_or_flattened_channel_of_a_4d_file_is_an_error_as_in_a_file_of_its_own(tiny_copy, channel):
    lists = lists_of(tiny_copy)
    for cases in lists.values():
        for entry in cases:
            image = nibabel.load(tiny_copy / entry["image"])
            voxels = np.asarray(image.dataobj)
            save(np.stack([voxels, voxels + 1], -1), image.affine, tiny_copy / entry["image"])
    assert make(tiny_copy, in_channels=2).report().problems == []

    def constant(voxels):
        voxels[..., channel] = 5
        return voxels

    def flattened(voxels):
        voxels[0, 0, 0, channel] = 1e30
        return voxels

    spoil_image(tiny_copy, flattened)
    (problem,) = make(tiny_copy, in_channels=2).report().errors
    assert problem.check == "intensities" and f"channel {channel}" in problem.what
    spoil_image(tiny_copy, constant)
    (problem,) = make(tiny_copy, in_channels=2).report().errors
    assert problem.check == "intensities" and f"channel {channel}" in problem.what


@pytest.mark.parametrize("value, slices", [(-32768, 5), (1e9, 14)])
def test_a_value_of_its_own_outside_of_the_scan_is_a_warning_unless_it_is_clipped(tiny_copy, value, slices):
    def padded(voxels):
        voxels[:slices] = value
        return voxels

    folder = spoil_image(tiny_copy, padded)
    (problem,) = make(folder).report().problems
    assert (problem.check, problem.level) == ("intensities", "warning") and f"{value:g}" in problem.what
    assert make(folder, intensity_window=[0, 500]).report().problems == []


def test_zeros_around_a_scan_are_no_value_of_their_own(tiny_copy):
    def stripped(voxels):
        voxels[:14] = 0
        return voxels

    assert make(spoil_image(tiny_copy, stripped)).report().problems == []


def test_the_label_of_another_case_is_a_warning(tmp_path):
    entries = []
    for seed in range(3):
        image, label = blob((20, 18, 16), seed=seed)
        entries.append({"image": f"{seed}.nii.gz", "label": f"{seed}_seg.nii.gz"})
        save(image, AFFINE, tmp_path / entries[-1]["image"])
        save(label if seed < 2 else blob((20, 18, 16), seed=0)[1], AFFINE, tmp_path / entries[-1]["label"])
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    report = make(tmp_path, unlabeled_batch_size=0).report()
    (problem,) = report.problems
    assert (problem.check, problem.level, Path(problem.file).name) == ("copies", "warning", "2_seg.nii.gz")
    assert "0_seg.nii.gz" in problem.what


def test_a_mask_of_other_numbers_than_whole_ones_is_a_mask_too(tiny_copy):
    lists = lists_of(tiny_copy)
    label = nibabel.load(tiny_copy / lists["training"][0]["label"])
    path = tiny_copy / lists["training"][-1]["image"]
    save(np.asarray(label.dataobj) * np.float32(0.7), label.affine, path)
    assert ("mask", path.name) in found(make(tiny_copy).report(), "error")
