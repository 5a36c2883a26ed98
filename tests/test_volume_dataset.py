"""Tests of scripts/data/volumes.py: volumes in files give the draws of volumes in memory, and leave nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import islice

import pytest
import torch
from conftest import ROOT, small
from monai.bundle import ConfigParser
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Compose, Lambdad, RandFlipd, RandomizableTransform, RandSpatialCropd

from scripts.data import VolumeDataset, crop_stream, volumes
from scripts.data.problems import DataError
from scripts.data.stream import SeededDraws

CASES, EXTENT, PATCH = 5, 8, 4


class Spoil(RandomizableTransform):
    """A transform that changes what it is given."""

    def __call__(self, case):
        case["image"] += 1000
        return case


def dataset(folder, *, cache_rate: float, steps=(), counted: list | None = None) -> VolumeDataset:
    """Volumes whose voxels all differ, read from memory; ``counted`` gets an entry for every volume that is read."""
    voxels = torch.arange(CASES * EXTENT**3, dtype=torch.float32).reshape(CASES, 1, EXTENT, EXTENT, EXTENT)

    def read(image):
        assert get_track_meta()
        if counted is not None:
            counted.append(int(image.min()) // EXTENT**3)
        return MetaTensor(image)

    keys = ["image", "label"]
    transform = Compose(
        [
            Lambdad("image", read, track_meta=False),
            Lambdad("label", lambda label: label.to(torch.int16), track_meta=False),
            *(steps or [RandSpatialCropd(keys, (PATCH,) * 3, random_size=False), RandFlipd(keys, prob=0.5)]),
        ]
    )
    cases = [{"image": image, "label": image.clone()} for image in voxels]
    return VolumeDataset(cases, transform, cache_rate=cache_rate, folder=folder)


def draws(data: VolumeDataset, count: int = 12, **options) -> torch.Tensor:
    loader = crop_stream(data, batch_size=2, seed=3, stream=0, **options)
    return torch.cat([batch["image"] for batch in islice(iter(loader), count // 2)])


@pytest.mark.parametrize("cache_rate", [0.0, 0.4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_draws_do_not_depend_on_where_the_volumes_lie(tmp_path, cache_rate, num_workers):
    cached = dataset(tmp_path, cache_rate=1)
    assert not any(tmp_path.iterdir())
    assert torch.equal(draws(dataset(tmp_path, cache_rate=cache_rate), num_workers=num_workers), draws(cached))


def test_a_volume_is_read_once_and_only_when_it_is_drawn(tmp_path):
    counted: list[int] = []
    one = SeededDraws(dataset(tmp_path, cache_rate=0.4, counted=counted), seed=3, stream=0)
    assert counted == [0, 1]
    for n in range(3 * CASES):
        one[n]
    assert sorted(counted) == list(range(CASES))


def test_processes_that_torchrun_started_share_the_files(tmp_path, monkeypatch):
    counted: list[list[int]] = [[], []]
    monkeypatch.setattr(volumes, "world_size", lambda: 2)
    first, second = (dataset(tmp_path, cache_rate=0.4, counted=read) for read in counted)
    for data in (first, second):
        draws(data)
    assert first.folder == second.folder and str(os.getppid()) in first.folder.name
    assert [sorted(read) for read in counted] == [list(range(CASES)), [0, 1]]


def test_random_transforms_see_plain_tensors_that_hold_the_crop_alone(tmp_path):
    for n in range(CASES):
        drawn = SeededDraws(dataset(tmp_path, cache_rate=0.4), seed=3, stream=0)[n]
        assert type(drawn["image"]) is type(drawn["label"]) is torch.Tensor
        assert drawn["label"].dtype == torch.int16
        assert drawn["image"].untyped_storage().nbytes() == 4 * PATCH**3
    assert get_track_meta()


def test_metadata_are_on_again_after_a_transform_that_fails(tmp_path):
    def refuse(_):
        raise KeyError

    with pytest.raises(RuntimeError):
        dataset(tmp_path, cache_rate=1, steps=[Spoil(), refuse])[0]
    assert get_track_meta()


@pytest.mark.parametrize("cache_rate", [0.0, 1.0])
@pytest.mark.parametrize("crop_first", [False, True])
def test_a_transform_in_place_does_not_change_what_is_kept(tmp_path, cache_rate, crop_first):
    crop = [RandSpatialCropd(["image", "label"], (EXTENT,) * 3, random_size=False)] if crop_first else []
    data = dataset(tmp_path, cache_rate=cache_rate, steps=[*crop, Spoil()])
    first, second = (data[1]["image"].clone() for _ in range(2))
    assert torch.equal(first, second) and int(first.min()) == EXTENT**3 + 1000


def test_files_go_with_the_process_and_those_of_a_killed_one_with_the_next(tmp_path):
    killed = tmp_path / f"{socket.gethostname()}-999999999"
    killed.mkdir()
    elsewhere = tmp_path / "another-host-1"
    elsewhere.mkdir()
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_volume_dataset import dataset, draws;"
        "data = dataset(sys.argv[1], cache_rate=0.4); draws(data, 20); print(len(list(data.folder.iterdir())))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split()[-1] == "3"
    assert list(tmp_path.iterdir()) == [elsewhere]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="file"):
        dataset(tmp_path / "file", cache_rate=0)._mapped(0)


def test_a_training_takes_the_same_crops_with_and_without_a_cache(tiny, tmp_path):
    batches, parsers = [], []
    for rate in (0.5, 1.0):
        parsers.append(ConfigParser())  # which have the data sets, and thereby the files
        parsers[-1].read_config(str(ROOT / "configs/train.json"))
        parsers[-1].update(small(tiny, tmp_path, cache_rate=rate))
        for loader in ("train#dataloader", "train#unlabeled_dataloader"):
            batches.append([batch["image"] for batch in islice(iter(parsers[-1].get_parsed_content(loader)), 4)])
    labeled, unlabeled, *cached = batches
    assert all(map(torch.equal, labeled + unlabeled, cached[0] + cached[1]))
    assert len(list((tmp_path / "volumes" / "labeled").rglob("*.pt"))) == 2
