"""Tests of what files from others can do: weights run no code, no name leads out of a folder, no secret is kept."""

from __future__ import annotations

import csv
import json
import pickle
import re
import sys
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT, SHAPES, blob, las, run_process, save, small
from ignite.engine import Engine
from monai.transforms import SaveImage
from torch import nn

from scripts.data import DataError, LabelCoding, check_cases, images_in
from scripts.evaluation import CaseMetrics
from scripts.inference import WeightsCheckpointLoader, contained_name, load_torchscript
from scripts.networks import DualTaskVNet

INFERENCE, TRAIN, EVALUATE = "configs/inference.json", "configs/train.json", "configs/evaluate.json"
AFFINE = las((1.0, 1.2, 2.0))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# --- weights ---


def test_a_pickle_in_a_file_of_weights_is_refused_and_not_run(tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "model.pt"
    torch.save({"weight": Payload(mark)}, path)
    network = nn.Linear(1, 1)
    engine = Engine(lambda engine, batch: None)
    WeightsCheckpointLoader(load_path=str(path), load_dict={"model": network}).attach(engine)
    with pytest.raises(ValueError, match=r"model\.pt is not a file of weights"):
        engine.run([0], max_epochs=1)
    with pytest.raises(ValueError, match=r"model\.pt is not a TorchScript file"):
        load_torchscript(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the payload is a live one
    assert mark.exists()


def test_code_loads_weights_as_weights_only():
    sources = {
        path: path.read_text(encoding="utf-8")
        for folder in ("scripts", "tools", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    }
    calls = [(path.name, call) for path, text in sources.items() for call in re.findall(r"torch\.load\([^\n]*", text)]
    assert calls
    assert [call for call in calls if "weights_only=True" not in call[1]] == []
    unsafe = (
        r"weights_only=False|pickle\.loads?\(|allow_pickle=True|yaml\.load\(|shell=True|(?<!\.)\beval\(|(?<!\.)\bexec\("
    )
    assert [path.name for path, text in sources.items() if re.search(unsafe, text)] == []


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pkl", ".nii.gz"])
def test_a_pickle_as_an_image_is_refused_before_a_reader_that_would_run_it(tmp_path, suffix):
    mark, path = tmp_path / "executed", tmp_path / f"image{suffix}"
    if suffix == ".npy":
        np.save(path, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(DataError):
        check_cases([{"image": str(path)}], in_channels=1)
    assert not mark.exists()


# --- names ---


def snapshot(folder: Path, *, without: Path) -> dict[str, bytes]:
    """Every file under ``folder`` that is not in ``without``, with its content."""
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and without not in path.parents
    }


def test_no_image_path_of_a_dataset_json_makes_the_evaluation_write_outside_its_folder(workflow, tmp_path):
    """Parent folders, an absolute path, and names with the separators of other systems."""
    data, output = tmp_path / "inner" / "data", tmp_path / "inner" / "out"
    names = [
        "../../up.nii.gz",
        str(tmp_path / "absolute.nii.gz"),
        "..\\..\\back.nii.gz",
        "c:drive.nii.gz",
        "%2e%2e%2fcoded.nii.gz",
    ]
    cases = []
    for i, name in enumerate(names):
        image, label = blob(SHAPES[0], seed=i)
        save(label, AFFINE, data / "labels" / f"{i}.nii.gz")
        save(image, AFFINE, data / name)
        cases.append({"image": name, "label": f"labels/{i}.nii.gz"})
    (data / "dataset.json").write_text(json.dumps({"training": cases[:3], "test": cases}))
    overrides = small(
        data, output, network_def={"_target_": "torch.nn.Sigmoid"}, **{"validate__handlers#0#_disabled_": True}
    )
    before = snapshot(tmp_path, without=output)
    bundle = workflow(TRAIN, EVALUATE, **overrides)
    bundle.initialize()
    bundle.run()
    assert snapshot(tmp_path, without=output) == before
    written = {path.name for path in output.iterdir()}
    assert {"up_seg.nii.gz", "absolute_seg.nii.gz", "metrics.csv"} <= written
    assert len([name for name in written if name.endswith("_seg.nii.gz")]) == len(names)
    assert all(path.is_file() for path in output.rglob("*"))  # no folder was made of a separator


def test_an_unpacked_archive_that_is_the_output_folder_cannot_redirect_an_output(workflow, tmp_path):
    """An archive with links where masks, records and tables will be written; the other case is still segmented."""
    outside = tmp_path / "outside"
    outside.mkdir()
    names = ("mask", "failures", "settings", "volumes", "journal")
    for name in names:
        (outside / name).write_text("mine")
    for i, name in enumerate(("linked", "plain")):
        save(blob(SHAPES[i], seed=i)[0], AFFINE, tmp_path / "new" / f"{name}.nii.gz")
    source = tmp_path / "source"
    source.mkdir()
    (source / "linked_seg.nii.gz").symlink_to(outside / "mask")
    (source / "failures.csv").symlink_to(outside / "failures")
    (source / "inference_settings.json").symlink_to(outside / "settings")
    (source / "volumes.csv").symlink_to(outside / "volumes")
    (source / ".cases-1-of-1.jsonl").symlink_to(outside / "journal")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(source, "volumes")
    with tarfile.open(tmp_path / "a.tar") as archive:
        archive.extractall(tmp_path, filter="fully_trusted")
    folder = tmp_path / "volumes"
    assert (folder / "linked_seg.nii.gz").is_symlink()
    bundle = workflow(
        INFERENCE,
        workflow_type="inference",
        network_def={"_target_": "torch.nn.Sigmoid"},
        spacing=None,
        patch_size=[16, 16, 16],
        stride=[16, 16, 16],
        input_dir=str(tmp_path / "new"),
        output_dir=str(folder),
        save_volumes=True,
        device="$torch.device('cpu')",
        **{"handlers#0#_disabled_": True},
    )
    bundle.initialize()
    with pytest.raises(RuntimeError) as caught:
        bundle.run()
    assert "cases failed" in str(caught.value.__cause__ or caught.value)
    assert {path.name: path.read_text() for path in outside.iterdir()} == dict.fromkeys(names, "mine")
    assert nibabel.load(folder / "plain_seg.nii.gz").shape == SHAPES[1]
    with (folder / "failures.csv").open(newline="") as file:
        reasons = {Path(row["case"]).name: row["reason"] for row in csv.DictReader(file)}
    assert "linked_seg.nii.gz is a link, or lies outside" in reasons["linked.nii.gz"]


def test_tables_of_an_evaluation_replace_links_instead_of_writing_through_them(tmp_path):
    for name in ("metrics", "metrics_summary"):
        (tmp_path / name).write_text("mine")
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / f"{name}.csv").symlink_to(tmp_path / name)
    engine = Engine(lambda engine, batch: [])
    CaseMetrics(LabelCoding(1), tmp_path / "out").attach(engine)
    engine.run([0], max_epochs=1)
    assert {(tmp_path / name).read_text() for name in ("metrics", "metrics_summary")} == {"mine"}
    assert (tmp_path / "out" / "metrics.csv").read_text().startswith("case,class,dice")


def test_a_link_among_the_images_is_named_after_itself(tmp_path):
    save(blob(SHAPES[0], seed=0)[0], AFFINE, tmp_path / "elsewhere" / "target.nii.gz")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.nii.gz").symlink_to(tmp_path / "elsewhere" / "target.nii.gz")
    (case,) = images_in(tmp_path / "in")
    saver = SaveImage(output_dir=tmp_path / "out", output_postfix="seg", separate_folder=False, print_log=False)
    names = contained_name({"filename_or_obj": case["image"]}, saver)
    assert saver.folder_layout.filename(**names) == str(tmp_path / "out" / "link_seg.nii.gz")


@pytest.mark.parametrize("target", ["../outside.nii.gz", "inside.nii.gz"])
def test_output_that_is_a_link_is_refused_whether_or_not_its_target_exists(tmp_path, target):
    out = tmp_path / "out"
    out.mkdir()
    (out / "case_seg.nii.gz").symlink_to(target)
    saver = SaveImage(output_dir=out, output_postfix="seg", separate_folder=False)
    with pytest.raises(ValueError, match=rf"{out}/case_seg\.nii\.gz is a link, or lies outside {out}"):
        contained_name({"filename_or_obj": "/data/case.nii.gz"}, saver)


def test_output_folder_may_itself_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    saver = SaveImage(output_dir=tmp_path / "out", output_postfix="seg", separate_folder=False)
    assert contained_name({"filename_or_obj": "/data/case.nii.gz"}, saver)["subject"] == "/data/case.nii.gz"


@pytest.mark.parametrize("path", [INFERENCE, EVALUATE])
def test_the_configs_write_volumes_by_the_one_transform_that_keeps_to_its_folder(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert "SaveImage" not in text and text.count("scripts.inference.SaveOutputsd") == 1


# --- secrets ---


@pytest.mark.long
def test_no_secret_of_the_environment_is_in_the_log_or_in_a_tracked_run(tiny, tmp_path):
    secrets = {
        name: f"s3cret-{i}-value"
        for i, name in enumerate(
            ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
        )
    }
    (tmp_path / "out" / "models").mkdir(parents=True)
    torch.save(
        DualTaskVNet(base_filters=2, normalization="group").state_dict(), tmp_path / "out" / "models" / "model.pt"
    )
    command = [sys.executable, "-m", "monai.bundle", "run", "evaluation", "--tracking", "mlflow"]
    command += ["--config_file", str([TRAIN, EVALUATE])]
    for name, value in small(tiny, tmp_path / "out").items():
        command += [f"--{name}", str(value)]
    finished = run_process(command, **secrets)
    assert finished.returncode == 0, finished.stderr
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)  # the run was tracked
    kept = [finished.stdout.encode(), finished.stderr.encode(), *(path.read_bytes() for path in files)]
    assert not [secret for secret in secrets.values() if any(secret.encode() in content for content in kept)]


# --- what the documents say ---


def test_readme_says_that_a_bundles_configs_are_code():
    assert re.search(r"configs are code", (ROOT / "README.md").read_text(encoding="utf-8"))
