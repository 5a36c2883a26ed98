"""Tests of docs/networks.md, docs/add_a_method.md and docs/methods: tables, commands and the example are true."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
import sys

import pytest
import torch
from conftest import ROOT, run_process, small
from monai.bundle import ConfigParser

from scripts.data import LabelCoding
from scripts.methods.losses import segmentation_loss

EXAMPLE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "docs" / "networks.md",
    ROOT / "docs" / "add_a_method.md",
    *sorted((ROOT / "docs" / "methods").glob("*.md")),
]
NETWORK_ROWS = [
    [cell.strip(" `") for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "networks.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `") and "networks/" not in line
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", EXAMPLE, flags=re.DOTALL)


def example_files() -> dict[str, str]:
    """Content of the example's files by their path."""
    return dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```", EXAMPLE, flags=re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("row", NETWORK_ROWS, ids=lambda row: row[0])
def test_parameters_in_the_table_are_those_of_the_methods_network(row):
    method, _, trained, run, _ = row
    parser = ConfigParser()
    parser.read_config([ROOT / "configs/train.json", ROOT / f"configs/methods/{method}.json"])
    network = parser.get_parsed_content("network_def")
    assert sum(p.numel() for p in network.parameters()) == int(trained.replace(",", ""))
    network.eval()(torch.randn(1, 1, 16, 16, 16)).sum().backward()
    assert sum(p.numel() for p in network.parameters() if p.grad is not None) == int(run.replace(",", ""))


def test_table_of_networks_has_the_methods_with_distance_maps_and_their_baseline():
    assert [row[0] for row in NETWORK_ROWS] == ["supervised", "dtc", "dtml", "dbisl"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_the_page_names_exist(page):
    named = re.findall(r"`((?:configs|scripts|tests)/[\w/.]+)`", page.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).exists() and name not in example_files()] == []


def test_example_is_as_short_as_it_says():
    assert len(blocks("python")) == len(blocks("json")) == len(blocks("sh")) == 1
    assert len(blocks("python")[0].splitlines()) <= 35


@pytest.fixture(scope="module")
def trained_example(tiny, tmp_path_factory):
    """Folder in which the example's files were put where the page says, and its command run for two iterations."""
    root = tmp_path_factory.mktemp("example")
    for folder in ("scripts", "configs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, content in example_files().items():
        (root / path).write_text(content, encoding="utf-8")
    program, *arguments = shlex.split(blocks("sh")[0].replace("\\\n", " "))
    first = next(i for i, argument in enumerate(arguments) if argument.startswith("--"))
    options = dict(zip(arguments[first::2], arguments[first + 1 :: 2]))
    overrides = small(tiny, root / "outputs", max_iterations=2)
    assert program == "python" and len(options) == 4
    options |= {f"--{name}": str(value) for name, value in overrides.items()}
    flat = [part for option in options.items() for part in option]
    finished = run_process([sys.executable, *arguments[:first], *flat], cwd=root)
    assert finished.returncode == 0, finished.stderr
    return root


def test_example_trains_with_its_terms_and_its_ramp(trained_example):
    with (trained_example / "outputs" / "training_log.csv").open(newline="", encoding="utf-8") as file:
        log = list(csv.DictReader(file))
    assert len(log) == 2
    for row, iteration in zip(log, (0, 1)):
        ramp = math.exp(-5 * max(0, 1 - iteration / (6 / 17 * 2)) ** 2)
        assert float(row["strong_weight"]) == pytest.approx(ramp)
        total = float(row["supervised_segmentation"]) + ramp * float(row["strong"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
    assert (trained_example / "outputs" / "models" / "model.pt").is_file()


def test_example_computes_what_it_says():
    namespace = {"__name__": "scripts.methods.fix_match", "__package__": "scripts.methods"}
    exec(compile(blocks("python")[0], "fix_match.py", "exec"), namespace)

    class Triple(torch.nn.Module):
        def forward_heads(self, image):
            return {"logits": 3 * image}

    objective = namespace["FixMatchObjective"](LabelCoding(1), Triple(), lambda image: image + 10, confidence=0.9)
    torch.manual_seed(0)
    image, label = torch.randn(3, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)
    targets = objective.views({"image": image[:1], "label": label}, {"image": image[1:]}, 0)
    strong = targets["image"][1:] - 10
    assert torch.equal(targets["mask"], (strong > 0).float())
    assert torch.equal(targets["sure"], strong.abs() >= math.log(9) / 3)  # sigmoid(3 x) is 0.9 there
    logits = torch.randn(3, 1, 4, 4, 4, requires_grad=True)
    loss = objective({"logits": logits}, targets, 0)
    expected = segmentation_loss(logits[1:], targets["mask"], targets["sure"])
    assert loss.terms["strong"].item() == pytest.approx(expected.item())
    assert loss.terms["supervised_segmentation"].item() == pytest.approx(segmentation_loss(logits[:1], label).item())
    (gradient,) = torch.autograd.grad(loss.terms["strong"], logits)
    assert torch.equal(gradient[1:] != 0, targets["sure"]) and (gradient[0] == 0).all()


def test_overlay_of_the_example_sets_only_what_train_json_has():
    parser = ConfigParser()
    parser.read_config(ROOT / "configs/train.json")
    overlay = json.loads(blocks("json")[0])
    assert len(overlay.pop("about")) > 20
    assert [key for key in overlay if key not in parser] == []
