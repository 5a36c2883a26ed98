"""Tests of tools/release: the zip has what a user needs and nothing else, is reproducible, and runs anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SHAPES, blob, las, run_process, save
from monai.apps.utils import HashCheckError

from tools.release.bundle import NAME, WEIGHTS, contents, large_files, make_bundle, sha256

VERSION = json.loads((ROOT / "configs" / "metadata.json").read_text())["version"]
ZOO_LIMIT = 25 * 1024 * 1024


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def downloaded(packed, tmp_path_factory) -> Path:
    """The bundle as MONAI's own command unpacks it, far from the repository."""
    folder = tmp_path_factory.mktemp("downloaded")
    monai.bundle.download(name=NAME, version=VERSION, bundle_dir=str(folder), url=packed.as_uri(), progress=False)
    return folder / NAME


@pytest.fixture
def copied(tmp_path) -> Path:
    """The files of the bundle, to spoil."""
    folder = tmp_path / "copied"
    for name in [*contents(ROOT), "models/model.pt"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def names_in(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


# --- the zip ---


def test_zip_is_named_after_the_version_and_holds_one_folder(packed):
    assert packed.name == f"{NAME}_v{VERSION}.zip"
    assert {name.split("/")[0] for name in names_in(packed)} == {NAME}


def test_zip_holds_what_every_part_of_the_bundle_needs_and_no_tests_or_outputs(packed):
    names = {name.removeprefix(f"{NAME}/") for name in names_in(packed)}
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts").rglob("*.py")}
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert code | configs | {"LICENSE", "docs/README.md", "models/model.pt", "large_files.yml"} <= names
    assert {name.split("/")[0] for name in names if "/" in name} == {"configs", "docs", "models", "scripts"}
    assert not [name for name in names if "__pycache__" in name or "/." in name]


def test_zip_stands_alone_its_pages_link_to_nothing_and_run_nothing_that_is_not_in_it(downloaded):
    pages = sorted(downloaded.rglob("*.md"))
    assert {"README.md", "docs/README.md", "docs/inference.md"} <= {p.relative_to(downloaded).as_posix() for p in pages}
    absent = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not link.startswith("http")]
        absent += [(page.name, link) for link in links if not (page.parent / link).exists()]
        # Files and folders of the repository, by name or as a module.
        named = re.findall(r"(?<![\w/])(?:configs|docs|scripts|tools|tests|benchmarks)/[\w./-]+\.\w+", text)
        absent += [(page.name, name) for name in named if not (downloaded / name).exists()]
        commands = "\n".join(line for line in text.splitlines() if "working copy" not in line)
        absent += [(page.name, found) for found in re.findall(r"-m (?:tools|benchmarks|pytest)\S*|`make \w+", commands)]
    assert absent == [], absent


def test_commands_of_the_zips_readme_run_in_it(downloaded, tmp_path):
    """With the packages of requirements-inference.txt alone: those that are not among them cannot be imported."""
    listed = {
        re.split(r"[=<>]", line)[0].lower()
        for line in (downloaded / "requirements-inference.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    readme = (downloaded / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python -m monai.bundle run inference .*?\n.*?$", readme, flags=re.MULTILINE)
    save(blob(SHAPES[0], seed=0)[0], las((1.0, 1.2, 2.0)), tmp_path / "in" / "a.nii.gz")
    (tmp_path / "without").mkdir()
    for package in ("matplotlib", "mlflow", "pandas", "SimpleITK", "skimage", "einops", "tensorboard", "onnxruntime"):
        assert package.lower() not in listed
        (tmp_path / "without" / f"{package}.py").write_text(f"raise ImportError('{package} is not installed')")
    words = shlex.split(command.replace("\\\n", "").replace(" DIR", f" {tmp_path / 'in'}").replace("MASKS", "out"))
    finished = run_process([sys.executable, *words[1:]], cwd=downloaded, PYTHONPATH=str(tmp_path / "without"))
    assert finished.returncode == 0, finished.stderr
    assert nibabel.load(downloaded / "out" / "a_seg.nii.gz").shape == SHAPES[0]
    shutil.rmtree(downloaded / "out")


def test_zip_is_the_same_byte_for_byte_from_another_folder_at_another_time(packed, copied, tmp_path):
    for path in copied.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    (copied / "scripts" / "__pycache__").mkdir()
    (copied / "scripts" / "__pycache__" / "x.pyc").write_text("compiled")
    (copied / "configs" / ".cache").write_text("hidden")
    (copied / "outputs").mkdir()
    (copied / "outputs" / "metrics.csv").write_text("case")
    again = make_bundle(tmp_path, root=copied)
    assert again.read_bytes() == packed.read_bytes()


def test_missing_part_or_weights_and_links_are_refused(copied, tmp_path):
    (copied / "LICENSE").rename(tmp_path / "LICENSE")
    with pytest.raises(ValueError, match="has no LICENSE"):
        make_bundle(tmp_path, root=copied)
    (copied / "LICENSE").symlink_to(tmp_path / "LICENSE")
    with pytest.raises(ValueError, match="LICENSE is a link"):
        make_bundle(tmp_path, root=copied)
    (copied / "models" / "model.pt").unlink()
    with pytest.raises(ValueError, match="model.pt does not exist"):
        make_bundle(tmp_path, root=copied)


# --- large files ---


def test_weights_that_are_served_are_left_out_listed_and_verified_when_they_are_fetched(copied, tmp_path):
    (copied / "models" / "model.ts").write_bytes(b"scripted")
    served = tmp_path / "served"
    shutil.copytree(copied / "models", served)
    packed = make_bundle(tmp_path, root=copied, models_url=served.as_uri() + "/")
    assert not [name for name in names_in(packed) if name.endswith((".pt", ".ts"))]
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    bundle = tmp_path / NAME
    entries = yaml.safe_load((bundle / "large_files.yml").read_text())["large_files"]
    assert [entry["path"] for entry in entries] == ["models/model.pt", "models/model.ts"]
    assert {entry["hash_type"] for entry in entries} == {"sha256"}
    monai.bundle.download_large_files(str(bundle))
    for name in ("model.pt", "model.ts"):
        assert (bundle / "models" / name).read_bytes() == (served / name).read_bytes()
    (bundle / "models" / "model.ts").unlink()
    (served / "model.ts").write_bytes(b"tampered")
    with pytest.raises(HashCheckError):
        monai.bundle.download_large_files(str(bundle))


def test_hash_is_the_sha256_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert yaml.safe_load(large_files(tmp_path, [], None)) == {"large_files": None}


def test_weights_within_the_bundle_are_listed_and_verified_where_they_are(copied, tmp_path):
    (copied / "models" / "model.ts").write_bytes(b"scripted")
    with zipfile.ZipFile(make_bundle(tmp_path, root=copied)) as archive:
        archive.extractall(tmp_path)
    bundle = tmp_path / NAME
    entries = yaml.safe_load((bundle / "large_files.yml").read_text())["large_files"]
    assert [entry["path"] for entry in entries] == ["models/model.pt", "models/model.ts"]
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    monai.bundle.download_large_files(str(bundle))  # the Model Zoo's check begins with it
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    for name in ("model.ts", "model.pt"):
        (bundle / "models" / name).write_bytes(b"tampered")
        with pytest.raises(HashCheckError, match=name.replace(".", r"\.")):
            monai.bundle.download_large_files(str(bundle))
        (bundle / "models" / name).write_bytes(before[bundle / "models" / name])


def test_large_files_of_this_repository_has_the_hash_of_all_weights_present_and_all_that_the_zoo_does_not_take():
    listed = {entry["path"]: entry for entry in yaml.safe_load((ROOT / "large_files.yml").read_text())["large_files"]}
    assert "models/model.pt" in listed
    assert [name for name in WEIGHTS if (ROOT / name).is_file() and name not in listed] == []
    for path, entry in listed.items():
        assert set(entry) == {"path", "url", "hash_val", "hash_type"} and entry["hash_type"] == "sha256"
        if (ROOT / path).is_file():
            digest = hashlib.sha256((ROOT / path).read_bytes()).hexdigest()
            assert digest == entry["hash_val"], f"{path} is not the listed one: see CONTRIBUTING.md, Releases"
    files = [*contents(ROOT), "models/model.pt"]
    assert [name for name in files if (ROOT / name).stat().st_size > ZOO_LIMIT and name not in listed] == []


# --- the bundle where it was unpacked ---


def test_downloaded_bundle_loads_and_segments_with_monai_alone(downloaded, tmp_path):
    """A fresh process in the unpacked folder, which knows nothing of this repository."""
    save(blob(SHAPES[0], seed=3)[0], las((1.0, 1.2, 2.0)), tmp_path / "new" / "case.nii.gz")
    program = (
        "import monai.bundle, pathlib, scripts;"
        "assert pathlib.Path(scripts.__file__).parent == pathlib.Path.cwd() / 'scripts';"
        f"net = monai.bundle.load('{NAME}', bundle_dir='..', workflow_type='inference', device='cpu');"
        "print('parameters', sum(p.numel() for p in net.parameters()), 'first', float(next(net.parameters()).sum()));"
        "monai.bundle.run(run_id='inference', config_file='configs/inference.json',"
        f" input_dir={str(tmp_path / 'new')!r}, output_dir={str(tmp_path / 'masks')!r})"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=downloaded, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    state = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    first = next(iter(state.values())).float().sum().item()
    assert float(re.search(r"first (\S+)", finished.stdout)[1]) == pytest.approx(first, rel=1e-5)
    mask = nibabel.load(tmp_path / "masks" / "case_seg.nii.gz")
    assert mask.shape == SHAPES[0] and set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}


@pytest.mark.long
def test_unit_tests_of_the_zoo_pass_where_the_zoo_has_them(packed, tmp_path):
    """The zoo's layout, with nothing of this repository but the zip and the two files."""
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "models")
    shutil.copytree(ROOT / "tests" / "zoo", tmp_path / "ci" / "unit_tests")
    finished = run_process([sys.executable, "-m", "unittest", "discover", "-s", "ci/unit_tests"], cwd=tmp_path)
    assert finished.returncode == 0 and "Ran 3 tests" in finished.stderr, finished.stderr
    assert not (tmp_path / "models" / NAME / "outputs").exists()


def test_matched_bundle_has_the_settings_of_its_weights_in_the_configs_that_clients_read(copied, tmp_path):
    settings = json.loads((copied / "models" / "model.json").read_text())
    settings.update(in_channels=2, num_classes=2, class_names=["lower", "upper"], base_filters=3, spacing=[1, 1, 2])
    (copied / "models" / "model.json").write_text(json.dumps(settings))
    with zipfile.ZipFile(make_bundle(tmp_path, root=copied, matched=True)) as archive:
        configs = {name: json.loads(archive.read(f"{NAME}/configs/{name}.json")) for name in ("train", "inference")}
        metadata = json.loads(archive.read(f"{NAME}/configs/metadata.json"))
    for name, config in configs.items():
        assert {key: config[key] for key in settings} == settings, name
        original = json.loads((ROOT / "configs" / f"{name}.json").read_text())
        assert {key: value for key, value in config.items() if key not in settings} == {
            key: value for key, value in original.items() if key not in settings
        }
    formats = metadata["network_data_format"]
    assert formats["inputs"]["image"]["num_channels"] == formats["outputs"]["pred"]["num_channels"] == 2
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "lower", "2": "upper"}


def test_unpacking_an_archive_never_writes_outside_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("bundle/configs/metadata.json", "{}")
        archive.writestr("bundle/../../escaped.txt", "escaped")
    (tmp_path / "inner" / "target").mkdir(parents=True)
    with pytest.raises(ValueError):
        monai.bundle.download(
            name="bundle",
            bundle_dir=str(tmp_path / "inner" / "target"),
            url=(tmp_path / "evil.zip").as_uri(),
            progress=False,
        )
    assert not list(tmp_path.rglob("escaped.txt"))
