"""Tests of the original label values, which are renumbered for training and come back in the masks of inference."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import SHAPES, blob, las, run_bundle, save, small

from tools.preparation.dataset import make_dataset
from tools.preparation.plan import make_plan
from tools.preparation.volumes import original_values


@pytest.mark.parametrize(
    "label_map, values",
    [
        ({1: 1, 3: 2}, [1, 3]),
        ({420: 2, 205: 1, "others": 0}, [205, 420]),
        ({1: 1, 2: 2}, None),
        ({1: 1, 2: 1, 3: 2}, None),  # two became one
        ({3: 2, "others": 1}, None),
        ({"liver": 1}, None),
        ({}, None),
    ],
)
def test_values_before_a_map_are_known_where_each_class_had_one(label_map, values):
    assert original_values(label_map) == values


def test_values_of_the_labels_come_back_in_the_masks_of_a_training_by_its_plan(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.preparation.plan.seconds_per_iteration", lambda **_: 2.0)
    for n in range(5):
        voxels, mask = blob(SHAPES[n], seed=n, num_classes=2)
        save(voxels, las((1, 1, 1)), tmp_path / "images" / f"p{n}.nii.gz")
        save(np.array([0, 7, 300], np.int16)[mask], las((1, 1, 1)), tmp_path / "labels" / f"p{n}.nii.gz")
    data, out = tmp_path / "set", tmp_path / "out"
    folders = {"image_dir": str(tmp_path / "images"), "label_dir": str(tmp_path / "labels")}
    make_dataset(**folders, output_dir=str(data), label_map={7: 1, 300: 2}, labeled=3, validation=0, test=1)
    plan = tmp_path / "plan.json"
    make_plan(dataset_dir=str(data), output=str(plan), device="cpu", memory_gb=4)
    assert json.loads(Path(plan).read_text())["label_values"] == [7, 300]
    settings = small(data, out, max_iterations=2, num_labeled=3)
    done = run_bundle("training", "configs/train.json", str(plan), **settings)
    assert done.returncode == 0, done.stderr
    model = out / "models" / "model.json"
    assert json.loads(model.read_text())["label_values"] == [7, 300]
    weights = out / "models" / "model.pt"
    done = run_bundle(
        "inference",
        "configs/inference.json",
        str(model),
        input_dir=str(tmp_path / "images"),
        output_dir=str(tmp_path / "masks"),
        ckpt_path=str(weights),
        largest_component=False,
        device="$torch.device('cpu')",
    )
    assert done.returncode == 0, done.stderr
    masks = [nibabel.load(path) for path in sorted((tmp_path / "masks").glob("*_seg.nii.gz"))]
    assert len(masks) == 5 and all(mask.get_data_dtype() == np.uint16 for mask in masks)
    found = {int(value) for mask in masks for value in np.unique(np.asarray(mask.dataobj))}
    assert found <= {0, 7, 300} and found & {7, 300}
