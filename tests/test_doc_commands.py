"""Tests that execute the commands of the tutorials and guides, in their order, on small data with tiny settings."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import ROOT, run_process, write_dataset
from doc_pages import files_shown, module_commands, options_of

DOCS = ROOT / "docs"
TINY = {"base_filters": "2", "patch_size": "[16,16,16]", "stride": "[16,16,16]", "max_iterations": "4"}
TINY_PLAN = {"base_filters": 2, "patch_size": [16, 16, 16], "stride": [16, 16, 16], "max_iterations": 4}
GUIDES = (
    "several_classes",
    "partial_labels",
    "anisotropic_data",
    "little_memory",
    "resume_a_run",
    "track_with_mlflow",
    "self_training",
)


def shrunk(words: list[str], *, dataset: Path | None) -> list[str]:
    """A command of a page with tiny settings, and another data set instead of the page's /data/mine."""
    module, *arguments = words
    first = next((i for i, word in enumerate(arguments) if word.startswith("--")), len(arguments))
    options = options_of(arguments)
    if arguments[:2] in (["run", "training"], ["run", "evaluation"], ["run", "preflight"]):
        # A patch that is thin on the page, as one of a sagittal overlay, becomes a cube: the test is about the command.
        options |= TINY
        options |= {"true_label_iterations": "1"} if "true_label_iterations" in options else {}
    if [module, *arguments[:1]] == ["scripts", "train"]:
        options |= TINY
    if module == "tools.preparation.plan" or [module, *arguments[:1]] == ["scripts", "plan"]:
        options["max_iterations"] = TINY["max_iterations"]
    if module == "tools.self_training":
        options["threshold"] = "0"  # networks of four iterations agree on nothing
    if options.get("dataset_dir") == "/data/mine":
        options["dataset_dir"] = str(dataset)
    return [module, *arguments[:first], *(part for name, value in options.items() for part in (f"--{name}", value))]


def execute(page: Path, root: Path, *, dataset: Path | None = None) -> list[str]:
    """Executes the commands of a page in ``root``, a copy of the project, and returns what each printed."""
    for path, content in files_shown(page).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content, encoding="utf-8")
    printed = []
    for words in module_commands(page, inline=False):
        finished = run_process([sys.executable, "-m", *shrunk(words, dataset=dataset)], cwd=root)
        assert finished.returncode == 0, f"{words}\n{finished.stdout}\n{finished.stderr}"
        printed.append(finished.stdout)
    return printed


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of what the commands need, so that nothing is written into the repository."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("scripts", "tools", "configs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("mine") / "data", num_classes=2, counts=(12, 1, 2))


@pytest.mark.long
def test_own_data_from_folders_to_masks(project):
    printed = execute(DOCS / "tutorials" / "own_data.md", project)
    assert len(printed) == 7
    summary = "outputs/data/dataset.json: 6 labeled, 12 unlabeled, 1 validation, 3 test"
    assert summary in printed[1].splitlines() and summary in (DOCS / "tutorials" / "own_data.md").read_text()
    folder = project / "outputs"
    planned = json.loads((folder / "plan.json").read_text())
    assert planned["num_labeled"] == 6 and planned["class_names"] == ["atrium"]
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["atrium"] * 3
    assert "<h1>run</h1>" in (folder / "run" / "run.html").read_text()
    mask = nibabel.load(folder / "masks" / "new_000_seg.nii.gz")
    image = nibabel.load(folder / "scans" / "new_volumes" / "new_000.nii.gz")
    assert mask.shape == image.shape and np.allclose(mask.affine, image.affine)


@pytest.mark.long
def test_choose_a_method_compares_the_plan(project):
    path = project / "configs" / "plans" / "tutorial.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps({**plan, "common": TINY_PLAN, "seeds": [0]}))
    execute(DOCS / "tutorials" / "choose_a_method.md", project)
    table = (project / "outputs" / "tutorial" / "comparison" / "comparison.md").read_text()
    assert [name for name in plan["methods"] if f"| {name} | 4 | 1 |" not in table] == []
    assert (project / "outputs" / "tutorial" / "comparison" / "differences.png").is_file()


@pytest.mark.long
@pytest.mark.parametrize("name", GUIDES)
def test_commands_of_a_guide_run(project, two_classes, name):
    printed = execute(DOCS / "how_to" / f"{name}.md", project, dataset=two_classes)
    assert printed
    outputs = project / "outputs"
    if name == "several_classes":
        with (outputs / "classes" / "metrics_summary.csv").open(newline="") as file:
            assert {row["class"] for row in csv.DictReader(file)} == {"anterior", "posterior", "all"}
        assert json.loads((outputs / "regions" / "models" / "model.json").read_text())["regions"] == [[1, 2], [2]]
    if name == "resume_a_run":
        again = module_commands(DOCS / "how_to" / "resume_a_run.md")[0]
        finished = run_process([sys.executable, "-m", *shrunk(again, dataset=two_classes)], cwd=project)
        assert "finished: 4 iterations were done before" in finished.stdout
    if name == "track_with_mlflow":
        with closing(sqlite3.connect(outputs / "tracked" / "mlruns.db")) as database:
            names = {name for (name,) in database.execute("select distinct key from metrics").fetchall()}
            runs = database.execute("select name, status from runs").fetchall()
        assert {"train/loss", "train/pseudo_gradient_norm", "validation/val_mean_dice_class_1"} <= names
        assert list((outputs / "board" / "tensorboard").glob("events.out.tfevents.*"))
        assert runs == [("first", "FINISHED")]
