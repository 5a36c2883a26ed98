"""Tests of scripts/inference/outcomes.py: millilitres from oblique affines, and tables of a run."""

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

from scripts.data import LabelCoding
from scripts.inference import Outcomes


class Spoil(RandomizableTransform):
    """A transform that changes what it is given."""

    def __call__(self, case):
        case["image"] += 1000
        return case


def table(folder: Path, name: str = "volumes.csv") -> list[list[str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def enter(folder: Path, coding: LabelCoding, *masks: MetaTensor, **options: object) -> None:
    outcomes = Outcomes(folder, label_coding=coding, save_volumes=True, **options)
    with outcomes.recording():
        for voxels in masks:
            outcomes.enter(outcomes.finished({"pred": voxels}))


def test_volume_is_the_number_of_voxels_times_the_determinant_of_the_affine(tmp_path):
    enter(tmp_path / "new", LabelCoding(2), mask([[0, 1, 1, 2, 1]]), class_names=["liver", "spleen"])
    assert table(tmp_path / "new") == [["a", "liver", "3", "0.0072"], ["a", "spleen", "1", "0.0024"]]


def test_overlapping_regions_are_measured_each_and_classes_are_numbered_by_default(tmp_path):
    enter(tmp_path, LabelCoding(2, regions=[[1, 2], [2]]), mask([[1, 1, 0], [0, 1, 0]]))
    assert table(tmp_path) == [["a", "1", "2", "0.0048"], ["a", "2", "1", "0.0024"]]


def test_tables_are_those_of_the_last_run_and_nothing_else_stays(tmp_path):
    enter(tmp_path, LabelCoding(1), mask([[1, 0]]), mask([[1, 1]], name="b"))
    enter(tmp_path, LabelCoding(1), mask([[0, 0]], name="b"))
    assert table(tmp_path) == [["b", "1", "0", "0.0"]]
    assert [path.name for path in tmp_path.iterdir()] == ["volumes.csv"]


def test_a_run_that_breaks_off_leaves_the_tables_of_what_it_did(tmp_path):
    outcomes = Outcomes(tmp_path)
    with pytest.raises(KeyboardInterrupt), outcomes.recording():
        outcomes.failed("/data/c.nii.gz", "no\nvolume: 心房")
        raise KeyboardInterrupt
    assert table(tmp_path, "failures.csv") == [["/data/c.nii.gz", "no\nvolume: 心房"]]


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
        "import sys; sys.path.insert(0, 'tests'); from test_volumes import dataset, draws;"
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
