"""Tests of tools/release/{model,card}.py: a run becomes the bundle's model, and what is said of it is true."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from conftest import LABELED, ROOT, small
from PIL import Image
from scipy import ndimage

from scripts.data import DataError
from scripts.files import sha256
from scripts.workflow import run_workflow
from tools.release.bundle import contents
from tools.release.card import arguments_of_run, commands, fill, training_rows
from tools.release.model import half_precision, release_model

TRAIN, RECORD, EVALUATE = "configs/train.json", "configs/record.json", "configs/evaluate.json"


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """Output folder of a training of four iterations and of its evaluation."""
    output = tmp_path_factory.mktemp("finished")
    overrides = small(tiny, output, class_names=["blob"])
    for run_id, files in {"training": [TRAIN, RECORD], "evaluation": [TRAIN, RECORD, EVALUATE]}.items():
        paths = [str(ROOT / name) for name in files]
        run_workflow({"run_id": run_id, "config_file": paths, "logging_file": False, **overrides})
    run = json.loads((output / "run.json").read_text())
    # As the command line of a user; this one was called within a process.
    files = str([TRAIN, RECORD]).replace('"', "'")
    words = [
        "monai.bundle",
        "run",
        "training",
        "--config_file",
        files,
        "--num_labeled",
        "3",
        "--dataset_dir",
        "/secret",
    ]
    run["starts"][0]["command"] = words
    (output / "run.json").write_text(json.dumps(run))
    return output


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A copy of the bundle, to write into."""
    folder = tmp_path / "bundle"
    for name in [*contents(ROOT), "models/model.pt"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def run_copy(finished, tmp_path) -> Path:
    """The run, to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_becomes_the_bundles_model_with_settings_card_pictures_metrics_and_hash(finished, bundle, tiny):
    written = release_model(finished, tiny, root=bundle)
    assert all(path.is_file() and path.is_relative_to(bundle) for path in written)
    trained = torch.load(finished / "models" / "model.pt", weights_only=True)
    shipped = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert {value.dtype for value in shipped.values() if value.is_floating_point()} == {torch.float16}
    for name, value in trained.items():
        torch.testing.assert_close(shipped[name].float(), value.float(), rtol=1e-3, atol=1e-6)
    settings, inference = read(bundle / "models" / "model.json"), read(bundle / "configs" / "inference.json")
    trained = read(finished / "models" / "model.json")
    assert trained.pop("run_digest") and settings == trained
    assert settings["patch_size"] == [16, 16, 16]
    assert {key: inference[key] for key in settings if key != "network_def"} == {
        key: settings[key] for key in settings if key != "network_def"
    }
    assert inference["network_def"] == read(ROOT / "configs" / "inference.json")["network_def"]

    metadata = read(bundle / "configs" / "metadata.json")
    with (finished / "metrics.csv").open(newline="") as file:
        dice = [float(row["dice"]) for row in csv.DictReader(file)]
    assert metadata["eval_metrics"]["mean_dice"] == pytest.approx(sum(dice) / len(dice), abs=1e-4)
    assert metadata["eval_metrics"]["cases"] == len(dice) == 2
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "blob"}
    (entry,) = yaml.safe_load((bundle / "large_files.yml").read_text())["large_files"]
    assert entry["hash_val"] == sha256(bundle / "models" / "model.pt")
    monai.bundle.download_large_files(str(bundle))  # what is there is verified, nothing is fetched

    card = (bundle / "docs" / "README.md").read_text()
    with (finished / "metrics_summary.csv").open(newline="") as file:
        (line,) = [row for row in csv.DictReader(file) if row["metric"] == "dice"]
    low, high = float(line["ci95_low"]), float(line["ci95_high"])
    assert f"| blob | Dice | {float(line['mean']):.3f} +- {float(line['std']):.3f} | {low:.3f} to {high:.3f} |" in card
    record = read(finished / "record.json")
    assert f"{record['parameters']:,} parameters" in card
    assert f"| cases | {LABELED} labeled, {6 - LABELED} unlabeled, 1 validation, 2 report |" in card
    for name in ("test_0", "test_1"):
        reference = np.asarray(nibabel.load(tiny / "labels" / f"{name}.nii.gz").dataobj) > 0
        (row,) = re.findall(rf"^\| {name} \|.*$", card, flags=re.MULTILINE)
        spacing = nibabel.load(tiny / "labels" / f"{name}.nii.gz").header.get_zooms()
        assert row.split(" | ")[5] == f"{reference.sum() * np.prod(spacing) / 1000:.1f}"
    assert "/secret" not in card and str(finished) not in card and "--num_labeled 3" in card
    for picture in re.findall(r"\]\((figures/\S+?\.png)\)", card):
        assert np.ptp(np.asarray(Image.open(bundle / "docs" / picture).convert("L"))) > 100
    # What stood outside the markers is as it was, and the same run gives the same files again.
    assert "## Limits" in card and card.count("<!-- begin performance -->") == 1
    before = snapshot(bundle)
    release_model(finished, tiny, root=bundle)
    assert snapshot(bundle) == before


def test_the_model_keeps_the_largest_part_if_its_evaluation_did(run_copy, bundle, tiny):
    for path in run_copy.glob("*_seg.nii.gz"):
        mask = nibabel.load(path)
        parts, count = ndimage.label(np.asarray(mask.dataobj) > 0, np.ones((3, 3, 3)))
        largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        assert count > 1
        nibabel.save(nibabel.Nifti1Image(largest.astype(np.uint8), mask.affine), path)
    release_model(run_copy, tiny, largest_component=True, root=bundle)
    for file in ("models/model.json", "configs/inference.json"):
        assert read(bundle / file)["largest_component"] is True
    release_model(run_copy, tiny, largest_component=True, root=bundle)


def test_nothing_is_written_when_the_evaluation_was_of_other_weights(run_copy, bundle, tiny):
    before = snapshot(bundle)
    for path in run_copy.glob("*_seg.nii.gz"):
        mask = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(1 - np.asarray(mask.dataobj), mask.affine), path)
    with pytest.raises(ValueError, match=r"the weights give another mask of test_. than .* evaluate the final weights"):
        release_model(run_copy, tiny, root=bundle)
    assert snapshot(bundle) == before


def test_an_unfinished_run_and_a_stale_export_are_refused(run_copy, bundle, tiny):
    (bundle / "models" / "model.ts").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"model\.ts holds the weights before these"):
        release_model(run_copy, tiny, root=bundle)
    (run_copy / "metrics.csv").unlink()
    with pytest.raises(DataError, match=r"metrics\.csv does not exist"):
        release_model(run_copy, tiny, root=bundle)
    (run_copy / "record.json").unlink()
    with pytest.raises(DataError, match=r"record\.json does not exist"):
        release_model(run_copy, tiny, root=bundle)


def test_weights_beyond_float16_are_refused_and_integers_kept():
    state = {"weight": torch.tensor([1.0, -2.5]), "num_batches_tracked": torch.tensor(70000)}
    half = half_precision(state)
    assert half["num_batches_tracked"] == 70000 and half["weight"].tolist() == [1.0, -2.5]
    for value in (70000.0, float("nan")):
        with pytest.raises(ValueError, match="running_var .1 in all. is not finite, or beyond 65504"):
            half_precision({**state, "running_var": torch.tensor([value])})


# --- the card's text ---


def test_markers_are_kept_and_a_missing_one_is_named():
    card = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"
    filled = fill(card, {"x": "new\n"})
    assert filled == "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb\n" and fill(filled, {"x": "new"}) == filled
    with pytest.raises(ValueError, match="lacks the lines <!-- begin y -->"):
        fill(card, {"y": "new"})


def test_command_is_that_of_the_preset_or_the_line_with_the_line_over_the_preset(tmp_path):
    preset = {
        "run_id": "training",
        "config_file": ["configs/train.json", "/x/mine.json"],
        "seed": 0,
        "output_dir": "/x",
    }
    (tmp_path / "training.json").write_text(json.dumps(preset))
    starts = [
        {
            "command": [
                "p",
                "run",
                "training",
                "--args_file",
                "/gone/training.json",
                "--seed=3",
                "--patch_size",
                "[9, 9]",
                "--amp",
            ]
        }
    ]
    arguments = arguments_of_run(tmp_path, starts)
    assert arguments == {"config_file": preset["config_file"], "seed": 3, "patch_size": [9, 9], "amp": True}
    block = commands(arguments)
    assert "--seed 3" in block and '--patch_size "[9, 9]"' in block and "'mine.json'" in block and "/x" not in block
    assert "'a.json', \\\n    'b.json'" in commands({"config_file": "['a.json', 'b.json']"})
    assert "'it'\"'\"'s'" in commands({"run_name": "it's"})


def test_a_continued_run_says_so_and_voxels_of_the_files_are_named():
    settings = dict.fromkeys(("objective", "network", "base_filters", "normalization", "dropout", "optimizer"), 1)
    settings |= {"learning_rate": 1, "cases": {"labeled": 2}, "spacing": None, "patch_size": [16, 32, 8], "seed": 0}
    settings |= {"labeled_batch_size": 2, "unlabeled_batch_size": 0}
    record = dict.fromkeys(("device", "threads", "torch", "monai", "python", "git_commit", "peak_gpu_memory_mb"), None)
    record |= {"training_seconds": 150.0, "parameters": 1000, "iterations": 5, "peak_memory_mb": 2048}
    rows = dict(training_rows(settings, record, [{}, {}, {}]))
    assert rows["voxels"] == "as in the files" and rows["patch"] == "16 x 32 x 8 voxels"
    assert rows["interrupted"].startswith("2 time(s)") and rows["largest memory"] == "2.0 GB"
    assert rows["time to train"].startswith("2 min") and rows["code"] == "without git"


# --- the card of this repository ---


def test_card_metadata_and_hash_of_this_repository_are_of_the_same_model():
    card = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    metadata = read(ROOT / "configs" / "metadata.json")["eval_metrics"]
    settings = read(ROOT / "models" / "model.json")
    assert f"| left atrium | Dice | {metadata['mean_dice']:.3f} +- " in card
    assert (
        f"{settings['base_filters']} base filters" in card
        and f"| normalisation | {settings['normalization']} |" in card
    )
    state = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    (parameters,) = re.findall(r"([\d,]+) parameters", card)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert int(parameters.replace(",", "")) == sum(v.numel() for k, v in state.items() if not k.endswith(statistics))
    for heading in ("## Intended use", "## Limits", "### Failure cases", "# License", "time to train"):
        assert heading in card
    for picture in re.findall(r"\]\((figures/\S+?\.png)\)", card):
        assert (ROOT / "docs" / picture).is_file()
