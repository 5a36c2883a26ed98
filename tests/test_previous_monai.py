"""Smoke test on the minor release of MONAI before this one: train, evaluate and infer, each as a command."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import SHAPES, blob, las, run_process, save, small

PREVIOUS = "1.5.2"


@pytest.fixture(scope="module")
def previous(tmp_path_factory) -> dict[str, str]:
    """The environment of a process that imports the release before, over the packages that are installed here."""
    folder = tmp_path_factory.mktemp("previous")
    options = ["--quiet", "--no-deps", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, f"monai=={PREVIOUS}"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if finished.returncode:
        pytest.skip(f"MONAI {PREVIOUS} cannot be installed here: {finished.stderr.strip().splitlines()[-1]}")
    return {"PYTHONPATH": str(folder)}


def bundle(run_id: str, *files: str, environment: dict[str, str], **overrides: object) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(list(files))]
    for name, value in overrides.items():
        command += [f"--{name}", str(value)]
    finished = run_process(command, **environment)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.long
def test_train_evaluate_and_infer_with_the_release_before(previous, tiny, tmp_path):
    finished = run_process([sys.executable, "-c", "import monai; print(monai.__version__)"], **previous)
    assert finished.stdout.strip() == PREVIOUS
    train, out = "configs/train.json", tmp_path / "out"
    bundle("training", train, environment=previous, **small(tiny, out))
    bundle("evaluation", train, "configs/evaluate.json", environment=previous, **small(tiny, out))
    assert len((out / "metrics.csv").read_text().splitlines()) == 3
    save(blob(SHAPES[0], seed=1)[0], las((1.0, 1.2, 2.0)), tmp_path / "new" / "case.nii.gz")
    bundle(
        "inference",
        "configs/inference.json",
        str(out / "models" / "model.json"),
        environment=previous,
        input_dir=tmp_path / "new",
        output_dir=tmp_path / "masks",
        ckpt_path=out / "models" / "model.pt",
        device="$torch.device('cpu')",
    )
    assert (tmp_path / "masks" / "case_seg.nii.gz").is_file()
