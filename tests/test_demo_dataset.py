"""Tests of tools/demo/{phantom,dataset}.py: the synthetic scans and the files they are written to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from scripts.errors import UserError
from tools.demo import dataset, phantom
from tools.demo.dataset import make_dataset
from tools.demo.phantom import simulate_volume

ROOT = Path(__file__).resolve().parents[1]
COUNTS = {"num_labeled": 1, "num_unlabeled": 2, "num_validation": 1, "num_test": 1}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict]:
    """A small data set that the tests only read: its folder and the content of dataset.json."""
    datalist = make_dataset(output_dir=str(tmp_path_factory.mktemp("demo") / "set"), **COUNTS, seed=3)
    return datalist.parent, json.loads(datalist.read_text())


@pytest.fixture(scope="module")
def volumes() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Image, label and affine of five patients; a vein of number 29 thins out so much that its tip comes loose."""
    return [simulate_volume(seed=0, index=index) for index in (0, 1, 2, 3, 29)]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


# --- shapes ---


def test_superellipsoid_is_zero_on_its_semi_axes_and_exact_along_the_shortest():
    points = np.array([(0.0, 0, 0), (2, 0, 0), (0, 3, 0), (1, 0, 0), (3, 0, 0)]).T.reshape(3, 5, 1, 1)
    level = phantom.superellipsoid(points, centre=(0, 0, 0), semi_axes=(2, 3, 4), exponent=4.0)
    np.testing.assert_allclose(level.ravel(), [-2, 0, 0, -1, 1], atol=1e-12)


def test_tube_is_the_distance_to_its_line_minus_the_tapering_radius():
    points = np.array([(0.0, 0, 0), (5, 3, 0), (10, 0, 4), (13, 0, 0)]).T.reshape(3, 4, 1, 1)
    level = phantom.tube(points, path=np.array([(0.0, 0, 0), (10.0, 0, 0)]), radii=np.array([2.0, 1.0]))
    np.testing.assert_allclose(level.ravel(), [-2, 1.5, 3, 2], atol=1e-12)


def test_coverage_is_the_part_of_the_voxel_below_a_plane():
    plane = 2.0 * (np.arange(6.0) - 2.25).reshape(6, 1, 1) * np.ones((6, 2, 2))  # crosses zero a quarter after voxel 2
    np.testing.assert_allclose(phantom.coverage(plane)[:, 0, 0], [1, 1, 0.75, 0, 0, 0], atol=1e-12)


# --- anatomy ---


def test_the_same_seed_and_index_give_the_same_volume_and_others_do_not():
    first, again = simulate_volume(seed=1, index=2), simulate_volume(seed=1, index=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    for other in (simulate_volume(seed=2, index=2), simulate_volume(seed=1, index=3)):
        assert not np.array_equal(first[0], other[0])
        assert not np.array_equal(first[1], other[1])


def test_label_is_binary_and_one_component_clear_of_every_border(volumes):
    for _, label, _ in volumes:
        assert label.dtype == np.uint8 and set(np.unique(label)) == {0, 1}
        assert ndimage.label(label)[1] == 1
        assert label[1:-1, 1:-1, 1:-1].sum() == label.sum()
        assert 0.01 < label.mean() < 0.12


def test_images_differ_in_size_and_contrast_and_have_air_around_the_body(volumes):
    assert len({image.shape for image, _, _ in volumes}) > 1
    brightness = [np.median(image[label == 1]) for image, label, _ in volumes]
    assert max(brightness) > 1.5 * min(brightness)
    for image, label, _ in volumes:
        assert image.dtype == np.int16 and image.min() >= 0
        corner = image[:3, :3].astype(float)
        assert corner.mean() < 0.3 * np.median(image[label == 1])
        assert corner.std() > 0


def test_intensity_alone_does_not_find_the_object(volumes):
    for image, label, _ in volumes:
        image = ndimage.gaussian_filter(image.astype(float), 0.7)  # in favour of the threshold: less noise
        inside = image[label == 1]
        ranges = [np.percentile(inside, (low, 100 - low)) for low in (0, 5, 15, 25)]
        assert max(dice((image >= low) & (image <= high), label == 1) for low, high in ranges) < 0.6


def test_distractors_hold_the_same_blood_as_the_object_and_about_as_much_of_it(monkeypatch):
    values = dict.fromkeys(phantom.tissue_values(np.random.default_rng(0)), 0.0)
    monkeypatch.setattr(phantom, "tissue_values", lambda rng: {**values, "blood": 1.0})
    blood, label = phantom.thorax((56, 56, 32), rng=np.random.default_rng(0))
    assert np.mean(blood[label == 1] >= 0.5) == 1
    assert (blood[label == 0] > 0.99).sum() > 0.7 * label.sum()


# --- files ---


def test_unlabeled_entries_have_no_label_key_and_no_label_file(written):
    root, datalist = written
    assert [set(entry) for entry in datalist["unlabeled"]] == [{"image"}, {"image"}]
    for entry in datalist["unlabeled"]:
        name = Path(entry["image"]).name
        assert [str(p.parent.relative_to(root)) for p in root.rglob(name)] == ["imagesTr"]


def test_every_listed_file_exists_and_the_new_volume_is_listed_nowhere(written):
    root, datalist = written
    roles = ("training", "unlabeled", "validation", "test")
    assert [len(datalist[role]) for role in roles] == [1, 2, 1, 1]
    listed = {path for role in roles for entry in datalist[role] for path in entry.values()}
    on_disk = {path.relative_to(root).as_posix() for path in root.rglob("*.nii.gz")}
    assert on_disk - listed == {"new_volumes/new_000.nii.gz", "new_volumes_reference/new_000.nii.gz"}
    assert listed <= on_disk
    assert datalist["labels"] == {"0": "background", "1": "left atrium (synthetic)"}
    assert datalist["numTraining"] == 1


def test_image_and_label_share_shape_and_affine_with_anisotropic_spacing_and_an_origin(written):
    root, datalist = written
    for entry in datalist["training"] + datalist["validation"] + datalist["test"]:
        image, label = nibabel.load(root / entry["image"]), nibabel.load(root / entry["label"])
        assert image.shape == label.shape
        assert label.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        np.testing.assert_allclose(image.header.get_zooms(), (1.25, 1.25, 2.0))
        assert np.abs(image.affine[:3, 3]).min() > 0


def test_volumes_do_not_depend_on_the_counts_and_roles_do_not_overlap(written, tmp_path):
    root, _ = written
    make_dataset(output_dir=str(tmp_path), num_labeled=2, num_unlabeled=0, num_validation=1, num_test=1, seed=3)
    shared = ("imagesTr/training_000", "imagesTr/training_001", "imagesTr/validation_000", "imagesTs/test_000")
    contents = [(root / f"{name}.nii.gz").read_bytes() for name in shared]
    assert contents == [(tmp_path / f"{name}.nii.gz").read_bytes() for name in shared]
    assert len(set(contents)) == 4
    assert (tmp_path / "labelsTr/training_001.nii.gz").is_file()  # labeled here, unlabeled there


def test_a_finished_data_set_is_left_as_it_is_and_another_one_is_refused(written, capsys):
    root, _ = written
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert make_dataset(output_dir=str(root), **COUNTS, seed=3) == root / "dataset.json"
    assert "already holds this data set: nothing was written" in capsys.readouterr().out
    with pytest.raises(
        FileExistsError, match=r"already holds another data set .*'seed': 3.*'seed': 4.*delete that folder"
    ):
        make_dataset(output_dir=str(root), **COUNTS, seed=4)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_an_interrupted_data_set_is_made_again(monkeypatch, tmp_path):
    arguments = {"output_dir": str(tmp_path), **{name: int(name == "num_labeled") for name in COUNTS}}
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_cases", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_dataset(**arguments)
    with pytest.raises(FileExistsError, match="delete that folder"):
        make_dataset(**arguments, seed=1)
    assert make_dataset(**arguments).is_file()


def test_a_folder_with_somebody_elses_images_is_refused(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(FileExistsError, match="made with None"):
        make_dataset(output_dir=str(tmp_path), **COUNTS)
    assert [path.name for path in tmp_path.rglob("*")] == ["imagesTr"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_labeled", 0),
        ("num_unlabeled", -1),
        ("num_validation", -2),
        ("num_test", 1.5),
        ("num_test", True),
        ("seed", -1),
    ],
)
def test_wrong_arguments_are_named_with_their_value_and_nothing_is_written(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name} is {value}; "):
        make_dataset(output_dir=str(tmp_path / "set"), **{name: value})
    assert not (tmp_path / "set").exists()


def test_the_command_line_writes_a_data_set_and_prints_where(tmp_path):
    counts = "--num_labeled 1 --num_unlabeled 0 --num_validation 0 --num_test 0".split()
    command = [sys.executable, "-m", "tools.demo.dataset", "--output_dir", str(tmp_path / "set"), *counts]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(tmp_path / "set" / "dataset.json")
    assert len(json.loads((tmp_path / "set" / "dataset.json").read_text())["training"]) == 1
