"""Tests in the Model Zoo's form: its checks in full mode, and train, evaluate and infer with shrunken configs."""

from __future__ import annotations

import json
import re
import unittest
from pathlib import Path

import monai.bundle
import pytest
import torch
from conftest import ROOT, SHAPES, blob, ids, las, save, small
from monai.bundle import ConfigWorkflow

CONFIGS = ROOT / "configs"
METADATA = CONFIGS / "metadata.json"
SCHEMA = ROOT.parent / "shared" / "reference" / "meta_schema_20240725.json"
ZOO_FILES = ("LICENSE", "large_files.yml", "configs/metadata.json", "configs/inference.json", "configs/train.json")
# The headings of the zoo's template for docs/README.md that a reader looks for.
CARD_HEADINGS = (
    "# Model Overview",
    "## Data",
    "## Training configuration",
    "## Performance",
    "## MONAI Bundle Commands",
)


def metadata() -> dict:
    return json.loads(METADATA.read_text(encoding="utf-8"))


def check_workflow(workflow: ConfigWorkflow) -> None:
    """What the zoo's unit tests do to every workflow."""
    workflow.initialize()
    unittest.TestCase().assertEqual(workflow.check_properties(), [])
    workflow.run()
    workflow.finalize()


# --- the checks in full mode ---


@pytest.mark.parametrize("name", [*ZOO_FILES, "docs/README.md", "models/model.pt"])
def test_directory_has_what_the_zoo_asks_for(name):
    assert (ROOT / name).is_file()


def test_card_has_the_headings_of_the_zoos_template():
    card = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [heading for heading in CARD_HEADINGS if heading not in card] == []


def test_version_is_in_the_changelogs_and_the_newest_of_them():
    data = metadata()
    assert re.fullmatch(r"\d+\.\d+\.\d+", data["version"]) and data["name"]
    assert list(data["changelog"])[0] == data["version"]
    assert f"## {data['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"no copy of MONAI's schema at {SCHEMA}")
def test_metadata_passes_monais_own_verification():
    monai.bundle.verify_metadata(meta_file=str(METADATA), filepath=str(SCHEMA))


def test_metadata_keeps_to_the_fields_of_the_schema_that_it_names():
    data = metadata()
    assert data["schema"].endswith("meta_schema_20240725.json")
    assert "required_packages_version" in data and "optional_packages_version" not in data
    for tensors in data["network_data_format"].values():
        for tensor in tensors.values():
            assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"} <= set(tensor)
            assert "*" not in tensor["spatial_shape"]  # the zoo would check with an extent of 1


def test_network_takes_and_gives_what_the_metadata_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = {
        "net_id": "network_def",
        "config_file": "configs/inference.json",
        "device": "cpu",
        "n": 1,
        "p": 1,
        "any": 1,
    }
    monai.bundle.verify_net_in_out(meta_file=str(METADATA), **arguments)
    # The check can fail:
    with pytest.raises(ValueError, match="channel number"):
        monai.bundle.verify_net_in_out(meta_file=str(METADATA), num_classes=2, **arguments)


def test_network_exports_to_torchscript_by_scripting(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "model.ts"
    monai.bundle.ckpt_export(net_id="network_def", config_file="configs/inference.json", filepath=str(path))
    network, extra, _ = monai.bundle.load(
        "", bundle_dir=str(tmp_path), model_file="model.ts", load_ts_module=True, device="cpu"
    )
    assert extra["network_data_format"]
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 1, 16, 16, 16)


def test_no_file_that_is_published_names_a_personal_path():
    pattern = re.compile(r"/(home|Users|root|workspace|mnt)/|[A-Z]:\\\\Users")
    files = [path for folder in ("configs", "scripts", "docs") for path in (ROOT / folder).rglob("*")]
    texts = [path for path in files if path.suffix in (".json", ".py", ".md", ".conf")]
    assert len(texts) > 50
    assert [str(path) for path in texts if pattern.search(path.read_text(encoding="utf-8"))] == []


# --- the unit tests: initialize, check_properties, run, finalize ---


def make(tmp_path: Path, *files: str, workflow_type: str, **overrides: object) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[str(CONFIGS / file) for file in files],
        meta_file=str(METADATA),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type=workflow_type,
        **ids({"bundle_root": str(ROOT), **overrides}),
    )


@pytest.fixture
def zoo(workflow):
    """Undoes what a run changes in this process, by way of the other fixture."""
    return make


def test_train_evaluate_and_infer_with_shrunken_configs(zoo, tiny, tmp_path):
    overrides = small(tiny, tmp_path / "out")
    check_workflow(zoo(tmp_path, "train.json", workflow_type="train", **overrides))
    model = tmp_path / "out" / "models" / "model.pt"
    assert model.is_file()
    check_workflow(zoo(tmp_path, "train.json", "evaluate.json", workflow_type="train", **overrides))
    assert (tmp_path / "out" / "metrics_summary.csv").is_file()
    save(blob(SHAPES[0], seed=1)[0], las((1.0, 1.2, 2.0)), tmp_path / "new" / "case.nii.gz")
    settings = json.loads((model.parent / "model.json").read_text())
    settings.update(
        input_dir=str(tmp_path / "new"),
        output_dir=str(tmp_path / "masks"),
        ckpt_path=str(model),
        device=overrides["device"],
    )
    check_workflow(zoo(tmp_path, "inference.json", workflow_type="infer", **settings))
    assert (tmp_path / "masks" / "case_seg.nii.gz").is_file()
