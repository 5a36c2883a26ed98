"""Data: caching scans and the preflight of a thousand volumes against nibabel; scans in files or in memory."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser

from benchmarks.dynamics import parse
from benchmarks.measure import medians, peak_megabytes, row, seconds
from benchmarks.scale import Scale
from scripts.data import Datalist
from scripts.data.machine import processors
from scripts.preflight import Preflight
from tools.demo.dataset import make_dataset
from tools.preparation.benchmark import write_benchmark
from tools.preparation.volumes import save_volume

SHAPE = (24, 22, 20)


def read(files: list[str]) -> list[np.ndarray]:
    """The voxels of all files as float32."""
    return [np.asarray(nibabel.nifti1.load(file).dataobj, dtype=np.float32) for file in files]


def cached(dataset_dir: str, cases: int) -> Any:
    """The labeled data set of configs/train.json with everything in its cache."""
    parser = parse(["configs/train.json"], {"dataset_dir": dataset_dir, "num_labeled": cases})
    with contextlib.redirect_stderr(io.StringIO()):
        return parser.get_parsed_content("train#dataset")


def memory(dataset_dir: str, cases: int) -> tuple[Callable, Callable]:
    """For ``peak_megabytes``."""
    return (lambda: dataset_dir), partial(cached, cases=cases)


def cache_row(dataset_dir: str | None, cases: int) -> dict[str, Any]:
    """The cache of the first ``cases`` scans of a data set, synthetic ones by default; once, since it is long."""
    with tempfile.TemporaryDirectory() as folder:
        if dataset_dir is None:
            with contextlib.redirect_stdout(io.StringIO()):
                make_dataset(output_dir=folder, num_labeled=cases, num_unlabeled=1, num_validation=0, num_test=0)
        root = dataset_dir or folder
        files = [str(case[key]) for case in Datalist(root).training[:cases] for key in ("image", "label")]
        reading, ours = seconds(lambda: read(files)), seconds(lambda: cached(root, cases))
        peak = peak_megabytes("benchmarks.data", f"memory({root!r}, {cases})")
    name = "the synthetic" if dataset_dir is None else Path(dataset_dir).name
    return row(f"cache of {cases} scans, {name}", ours, "nibabel, the same files", reading, peak_mb=peak)


def stream_row(dataset_dir: str | None, scale: Scale, repeats: int) -> dict[str, Any]:
    """A training iteration with a tenth of the scans in memory and the others in files, against all in memory."""
    works, cases = {}, scale.streamed
    with tempfile.TemporaryDirectory() as folder:
        if dataset_dir is None:
            with contextlib.redirect_stdout(io.StringIO()):
                make_dataset(output_dir=folder, num_labeled=cases, num_unlabeled=1, num_validation=0, num_test=0)
        for rate in (0.1, 1.0):
            settings = {"splits": {"training": [0, cases]}, "num_labeled": 2, "cache_rate": rate, "output_dir": folder}
            settings |= {"patch_size": list(scale.training), "base_filters": scale.training_filters[0]}
            settings |= {"dataset_dir": dataset_dir or folder}
            works[str(rate)] = Iterations(parse(["configs/train.json"], settings))
            for _ in range(cases // 2):  # every scan once, so that its file is there
                next(works[str(rate)].unlabeled)
            works[str(rate)]()
        times = medians(works, repeats)
    return row(f"one iteration, a tenth of {cases} scans in memory", times["0.1"], "all in memory", times["1.0"])


class Iterations:
    """Training iterations of a config: crops of both streams, forward and backward pass, step of the optimizer."""

    def __init__(self, parser: ConfigParser) -> None:
        names = ("network", "objective", "optimizer", "train#dataloader", "train#unlabeled_dataloader")
        self.network, self.objective, self.optimizer, *loaders = map(parser.get_parsed_content, names)
        self.labeled, self.unlabeled = map(iter, loaders)

    def __call__(self) -> None:
        labeled = next(self.labeled)
        image = torch.cat([labeled["image"], next(self.unlabeled)["image"]]).to(memory_format=torch.channels_last_3d)
        self.optimizer.zero_grad()
        self.objective(self.network(image), {"label": labeled["label"]}, 0).total.backward()
        self.optimizer.step()


def preflight_row(volumes: int) -> dict[str, Any]:
    """Reading and judging small volumes in one process."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{number:04d}.nii.gz" for number in range(volumes)]
        for name in names:
            voxels = random.integers(0, 1000, SHAPE, dtype=np.int16)
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), Path(folder) / name)
        Path(folder, "dataset.json").write_text(json.dumps({"training": [{"image": name} for name in names]}))
        preflight = Preflight(dataset_dir=folder, output_dir=folder, workers=1)
        reading = seconds(lambda: read([f"{folder}/{name}" for name in names]))
        with contextlib.redirect_stderr(io.StringIO()):
            ours = seconds(preflight.report)
    return row(f"preflight of {volumes} volumes", ours, "nibabel, the same files", reading)


def preparation_row(cases: int) -> dict[str, Any]:
    """Writing scans of the left atrium's size several at a time, against one after another; of the wall."""
    random = np.random.default_rng(0)
    image = random.standard_normal((184, 140, 88)).astype(np.float32)
    label, affine = np.zeros(image.shape, np.uint8), np.eye(4)
    names = [f"case{number}" for number in range(cases)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for name in names:
            save_volume(image, affine, Path(folder) / "one" / f"{name}.nii.gz")
            save_volume(label, affine, Path(folder) / "one" / f"{name}_label.nii.gz")
        between = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            write_benchmark(Path(folder), {"training": names}, lambda name: ([image], label, affine), {})
        end = time.perf_counter()
    what = f"preparation of {cases} scans, {processors()} processors"
    return row(what, end - between, "one after another", between - start)
