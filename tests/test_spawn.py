"""Tests of data workers that are started anew instead of forked, as on Windows and macOS."""

from __future__ import annotations

import pickle
import sys

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT, bundle_command, run_process, small
from monai.bundle import ConfigParser

TRAIN, EVALUATE, INFERENCE = "configs/train.json", "configs/evaluate.json", "configs/inference.json"
OVERLAYS = [[], ["configs/ablations/pre_generated_maps.json"]]
# The runner, in an interpreter that spawns.
SPAWNING = """
import multiprocessing, runpy, sys
multiprocessing.set_start_method("spawn")
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("overlays", OVERLAYS, ids=["train", "pre_generated_maps"])
@pytest.mark.parametrize("foreground_crops", [0, 0.5])
def test_what_is_sent_to_a_worker_can_be_pickled_and_draws_the_same(tiny, tmp_path, overlays, foreground_crops):
    parser = ConfigParser()
    parser.read_config([str(ROOT / file) for file in (TRAIN, *overlays)])
    window = {"intensity_window": [0, 400], "spacing": [1.5, 1.5, 1.5], "regions": [[1]]}
    parser.update(small(tiny, tmp_path, foreground_crops=foreground_crops, **window))
    for name in ("train#dataloader", "train#unlabeled_dataloader"):
        loader = parser.get_parsed_content(name)
        sent = pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn))
        dataset, collate, _ = pickle.loads(sent)
        ours, theirs = (collate([draws[n] for n in (3, 8)]) for draws in (loader.dataset, dataset))
        assert torch.equal(ours["image"], theirs["image"])
        assert ours["file"] == theirs["file"] and len(ours["file"]) == 2


@pytest.mark.parametrize(
    "files, name, folder",
    [
        ([TRAIN], "validate#dataloader", None),
        ([TRAIN, EVALUATE], "validate#dataloader", None),
        ([INFERENCE], "dataloader", "images"),
    ],
    ids=["validation", "evaluation", "inference"],
)
def test_whole_volumes_can_be_read_by_spawned_workers_too(tiny, tmp_path, files, name, folder):
    parser = ConfigParser()
    parser.read_config([str(ROOT / file) for file in files])
    folders = {"dataset_dir": str(tiny), "output_dir": str(tmp_path)}
    parser.update({**folders, "input_dir": str(tiny / folder)} if folder else folders)
    loader = parser.get_parsed_content(name)
    dataset, collate, _ = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn)))
    ours, theirs = loader.collate_fn([loader.dataset[0]]), collate([dataset[0]])
    assert torch.equal(ours["image"], theirs["image"]) and ours["image"].std() > 0


def test_crops_carry_the_file_that_they_were_cut_from(tiny, tmp_path):
    parser = ConfigParser()
    parser.read_config(ROOT / TRAIN)
    parser.update(small(tiny, tmp_path))
    draws = parser.get_parsed_content("train#unlabeled_dataloader").dataset
    for n in range(6):
        assert draws[n]["file"] == str(tiny / "images" / f"training_{3 + draws.case_of(n)}.nii.gz")


@pytest.mark.long
def test_evaluation_and_inference_with_spawned_workers_write_the_masks_of_those_without(tiny, tmp_path):
    trained = run_process(bundle_command("training", TRAIN, **small(tiny, tmp_path, max_iterations=1)))
    assert trained.returncode == 0, trained.stderr
    models = tmp_path / "models"
    cases = {"dataset_dir": str(tiny / "images"), "ckpt_path": str(models / "model.pt")}
    commands = {
        "evaluation": ([TRAIN, EVALUATE], "validate__dataloader", small(tiny, tmp_path)),
        "inference": ([INFERENCE, str(models / "model.json")], "dataloader", cases),
    }
    for run_id, (files, loader, settings) in commands.items():
        masks = []
        for workers in (1, 0):
            output = tmp_path / f"{run_id}_{workers}"
            changes = {**settings, "output_dir": str(output), f"{loader}__num_workers": workers}
            command = bundle_command(run_id, *files, **changes)
            finished = run_process([sys.executable, "-c", SPAWNING, *command[3:]])
            assert finished.returncode == 0, finished.stderr
            masks.append({path.name: nibabel.load(path).get_fdata() for path in output.rglob("*_seg.nii.gz")})
        assert len(masks[0]) >= 2 and masks[0].keys() == masks[1].keys()
        assert all(np.array_equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.long
def test_training_with_spawned_workers_gives_the_weights_of_one_without_workers(tiny, tmp_path):
    command = bundle_command("training", TRAIN, **small(tiny, tmp_path / "spawned", num_workers=2, max_iterations=2))
    finished = run_process([sys.executable, "-c", SPAWNING, *command[3:]])
    assert finished.returncode == 0, finished.stderr
    finished = run_process(bundle_command("training", TRAIN, **small(tiny, tmp_path / "plain", max_iterations=2)))
    assert finished.returncode == 0, finished.stderr
    spawned, plain = (
        torch.load(tmp_path / name / "models" / "model.pt", weights_only=True) for name in ("spawned", "plain")
    )
    assert all(torch.equal(spawned[name], plain[name]) for name in plain)
