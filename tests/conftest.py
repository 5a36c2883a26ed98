"""Fixtures: a tiny data set in NIfTI files, and bundle commands as real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from forked import run_forked
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"
TIMEOUT = 600

# One voxel size and shape per case: anisotropic, all different, and some extents below the patch of 16.
SHAPES = ((24, 22, 20), (20, 26, 18), (22, 20, 14), (24, 24, 16), (18, 22, 20), (20, 20, 22))
SPACINGS = ((1.0, 1.2, 2.0), (1.1, 1.0, 1.8), (1.0, 1.0, 2.5))
LABELED = 3
# Shrinks every training to a few seconds; 16 is the smallest patch that the network takes.
SMALL = {
    "base_filters": 2,
    "patch_size": [16, 16, 16],
    "stride": [8, 8, 8],
    "max_iterations": 4,
    "num_labeled": LABELED,
    "log_interval": 1,
    "device": "$torch.device('cpu')",
}

torch.set_num_threads(1)


def las(spacing: Sequence[float], *, origin: Sequence[float] = (30.0, -20.0, 10.0)) -> np.ndarray:
    """Affine (4, 4), mm, of a volume whose first axis runs to the patient's left."""
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = origin
    return affine


def oblique(spacing: Sequence[float]) -> np.ndarray:
    """Affine (4, 4), mm, of a volume whose axes are 20 degrees off the patient's."""
    turn = np.array([[np.cos(0.35), -np.sin(0.35), 0], [np.sin(0.35), np.cos(0.35), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-spacing[0], spacing[1], spacing[2]])
    affine[:3, 3] = (12.0, -7.0, 3.0)
    return affine


def save(array: np.ndarray, affine: np.ndarray, path: Path) -> str:
    """Writes ``array`` as NIfTI and returns the path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return str(path)


def blob(shape: Sequence[int], *, seed: int, num_classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, D), int16, and label (H, W, D), uint8, of a bright ellipsoid; class 2 is its upper half."""
    rng = np.random.default_rng(seed)
    centre = [n / 2 + rng.uniform(-2, 2) for n in shape]
    grid = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    radius = sum(((g - c) / (n * 0.3)) ** 2 for g, c, n in zip(grid, centre, shape))
    label = (radius < 1).astype(np.uint8)
    if num_classes == 2:
        label[(label == 1) & (grid[2] > centre[2])] = 2
    image = 100 + 200 * (label > 0) + rng.normal(0, 30, shape)
    return image.astype(np.int16), label


def write_dataset(folder: Path, *, num_classes: int = 1, counts: tuple[int, int, int] = (6, 1, 2)) -> Path:
    """Writes a data set: ``counts`` cases for training (all with a label file), validation and test."""
    lists: dict[str, list[dict[str, str]]] = {}
    seed = 0
    for name, count in zip(("training", "validation", "test"), counts):
        lists[name] = []
        for number in range(count):
            image, label = blob(SHAPES[seed % len(SHAPES)], seed=seed, num_classes=num_classes)
            affine = las(SPACINGS[seed % len(SPACINGS)])
            entry = {"image": f"images/{name}_{number}.nii.gz", "label": f"labels/{name}_{number}.nii.gz"}
            save(image, affine, folder / entry["image"])
            save(label, affine, folder / entry["label"])
            lists[name].append(entry)
            seed += 1
    (folder / "dataset.json").write_text(json.dumps(lists, indent=2))
    return folder


def delete_unlabeled_labels(folder: Path) -> None:
    """Removes the label files of the training cases behind the first ``LABELED``."""
    for entry in json.loads((folder / "dataset.json").read_text())["training"][LABELED:]:
        (folder / entry["label"]).unlink()


def merged(*files: str) -> ConfigParser:
    """The configs of the bundle, one over another."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / file) for file in files])
    return parser


def small(dataset: Path, output: Path, **changes: object) -> dict[str, object]:
    """The overrides of a run of seconds that reads ``dataset`` and writes to ``output`` and ``output``/models."""
    folders = {"dataset_dir": str(dataset), "output_dir": str(output), "ckpt_dir": str(output / "models")}
    return ids({**SMALL, **folders, **changes})


def ids(overrides: dict[str, object]) -> dict[str, object]:
    """Keyword arguments as config ids: ``train__dataset`` becomes ``train#dataset``."""
    return {name.replace("__", "#"): value for name, value in overrides.items()}


def run_bundle(run_id: str, *config_files: str, **overrides: object) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle run`` as users call it: from the repository root, in a process of its own.

    Args:
        run_id: of the config.
        config_files: relative to the root, or absolute.
        overrides: config ids (see :func:`ids`) and their values.

    Returns:
        The finished process, with returncode, stdout and stderr (text).
    """
    return run_process(bundle_command(run_id, *config_files, **overrides))


def bundle_command(run_id: str, *config_files: str, **overrides: object) -> list[str]:
    """The command line of :func:`run_bundle`."""
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(list(config_files))]
    for name, value in ids(overrides).items():
        command += [f"--{name}", str(value)]
    return command


def run_process(command: Sequence[str], *, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command, from the repository root unless told otherwise, without this process's PYTHONPATH.

    A module, "python -m", starts with the libraries imported (see :mod:`forked`), unless ``environment`` is given.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DBISL_TRACEBACK")}
    inherited["OMP_NUM_THREADS"] = "1"
    if [*command[:2]] == [sys.executable, "-m"] and not environment:
        return run_forked(command[2:], cwd, inherited, TIMEOUT)
    return subprocess.run(
        command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True, timeout=TIMEOUT
    )


def real_data(name: str) -> Path:
    """Folder of a real data set; skips the test where it is not there, as on every machine but ours."""
    folder = REAL_DATA / name
    if not (folder / "dataset.json").is_file():
        pytest.skip(f"the real data set {name} is not at {folder}")
    return folder


@pytest.hookimpl(tryfirst=True)  # before the expression behind -m is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the Model Zoo's tests of several processes, whose files take nothing from pytest, as long."""
    for item in items:
        if item.path.parent.name == "zoo" and item.path.stem.endswith("_dist"):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that tests only read: 6 training, 1 validation and 2 test cases, one class."""
    return write_dataset(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ConfigWorkflow]]:
    """Makes a bundle workflow in this process, as clients of the bundle do; undoes what a run changes globally."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def make(*config_files: str, run_id: str = "run", workflow_type: str = "train", **overrides: object):
        return ConfigWorkflow(
            list(config_files), workflow_type=workflow_type, run_id=run_id, logging_file=False, **ids(overrides)
        )

    yield make
    set_determinism(seed=None)


@pytest.fixture
def tiny_copy(tiny: Path, tmp_path: Path) -> Path:
    """The same data set in a folder of the test's own, to spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "data"))
