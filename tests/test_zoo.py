"""Tests of what the Model Zoo checks in full mode; its unit tests, of shrunken configs, are in tests/zoo."""

from __future__ import annotations

import json
import re

import monai.bundle
import pytest
import torch
from conftest import ROOT

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


@pytest.mark.parametrize("name", [*ZOO_FILES, "docs/README.md", "docs/data_license.txt", "models/model.pt"])
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
    files = [path for folder in ("configs", "scripts", "tools", "docs") for path in (ROOT / folder).rglob("*")]
    texts = [path for path in files if path.suffix in (".json", ".py", ".md", ".txt", ".conf")]
    assert len(texts) > 50
    assert [str(path) for path in texts if pattern.search(path.read_text(encoding="utf-8"))] == []
