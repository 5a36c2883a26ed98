"""Tests on the real data sets, which only our own machines have: splits as the overlays state them, and a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, real_data, run_bundle
from monai.bundle import ConfigParser

from scripts.data import Datalist, LabelCoding, check_cases


def overlay(name: str) -> dict:
    return json.loads((ROOT / "configs" / "data" / f"{name}.json").read_text(encoding="utf-8"))


def listed(folder: Path) -> list[str]:
    """File names of all cases, in the order of dataset.json."""
    return [Path(case["image"]).name for case in json.loads((folder / "dataset.json").read_text())["training"]]


def names(cases: list[dict]) -> list[str]:
    return [Path(case["image"]).name for case in cases]


@pytest.mark.parametrize(
    "name, overlays, labeled, unlabeled, validation, test",
    [
        ("left_atrium", ["left_atrium"], 16, 40, 8, 16),
        ("left_atrium", ["left_atrium", "left_atrium_cpu"], 8, 48, 8, 16),
        ("hippocampus", ["hippocampus"], 5, 155, 20, 20),
    ],
    ids=["left-atrium", "left-atrium-cpu", "hippocampus"],
)
def test_overlay_splits_the_data_as_it_says(name, overlays, labeled, unlabeled, validation, test):
    folder = real_data(name)
    settings = {key: value for overlay_name in overlays for key, value in overlay(overlay_name).items()}
    datalist = Datalist(folder, splits=settings["splits"])
    lists = [
        names(datalist.labeled(settings["num_labeled"])),
        names(datalist.unlabeled(settings["num_labeled"])),
        names(datalist.required("validation")),
        names(datalist.required("test")),
    ]
    assert [len(cases) for cases in lists] == [labeled, unlabeled, validation, test]
    # In the order of the file from its first case on: the labeled ones are the benchmark's.
    assert sum(lists, []) == listed(folder)[: labeled + unlabeled + validation + test]
    assert not any("label" in case for case in datalist.unlabeled(settings["num_labeled"]))


@pytest.mark.parametrize("name, num_classes", [("left_atrium", 1), ("hippocampus", 2)])
def test_files_of_the_labeled_validation_and_test_cases_pass_the_checks(name, num_classes):
    settings = overlay(name)
    datalist = Datalist(real_data(name), splits=settings["splits"])
    coding = LabelCoding(num_classes)
    for cases in (datalist.labeled(4), datalist.validation[:2], datalist.test[:2]):
        assert check_cases(cases, in_channels=1, label_coding=coding) is cases
    assert settings["num_classes"] == num_classes == len(settings["class_names"])


def test_hippocampus_crops_have_both_classes_and_the_patch_of_the_overlay(monkeypatch):
    monkeypatch.chdir(ROOT)
    parser = ConfigParser()
    parser.read_config(["configs/train.json", "configs/data/hippocampus.json"])
    parser["dataset_dir"] = str(real_data("hippocampus"))
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    assert batch["image"].shape == batch["label"].shape == (2, 1, *parser["patch_size"])
    assert set(batch["label"].unique().tolist()) == {0.0, 1.0, 2.0}


@pytest.mark.long
def test_two_iterations_on_hippocampus_through_the_runner(tmp_path):
    finished = run_bundle(
        "training",
        "configs/train.json",
        "configs/data/hippocampus.json",
        dataset_dir=str(real_data("hippocampus")),
        output_dir=str(tmp_path),
        ckpt_dir=str(tmp_path / "models"),
        max_iterations=2,
        base_filters=2,
        device="$torch.device('cpu')",
    )
    assert finished.returncode == 0, finished.stderr
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert state["segmentation_head_phi.weight"].shape[0] == 2
    assert all(value.isfinite().all() for value in state.values())
    settings = json.loads((tmp_path / "models" / "model.json").read_text())
    assert settings["class_names"] == ["anterior", "posterior"]
