"""Tests of the project's own papers: pins, lint, citation and the files and modules that its documents name."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
import test_previous_monai
import yaml
from conftest import ROOT
from monai.bundle import ConfigParser

DOCUMENTS = ("CONTRIBUTING.md", "docs/export.md", "docs/clients.md", "docs/several_devices.md")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned(name):
    lines = [line for line in read(name).splitlines() if line and not line.startswith("#")]
    assert len(lines) > 5
    assert [line for line in lines if not re.fullmatch(r"[\w-]+==[\w.]+", line)] == []


def test_requirements_of_inference_are_those_of_the_project():
    lean, full = (set(read(f"requirements{name}.txt").splitlines()) for name in ("-inference", ""))
    assert {line for line in lean if not line.startswith("#")} < full


def test_citation_names_the_four_papers_and_the_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == json.loads(read("configs/metadata.json"))["version"]
    assert [paper["authors"][0]["family-names"] for paper in citation["references"]] == ["Li", "Luo", "Zhang", "Lu"]
    assert all(paper["title"] and paper["type"] in ("article", "conference-paper") for paper in citation["references"])


def test_version_of_the_upload_in_the_documents_is_the_metadatas():
    versions = re.findall(r"--version ([\d.]+)", read("docs/clients.md"))
    assert versions == [json.loads(read("configs/metadata.json"))["version"]]


def test_pre_commit_runs_what_make_lint_runs():
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    lint = read("Makefile").split("lint: install\n")[1].split("\n\n")[0]
    called = [name.rpartition(".")[2] for name in re.findall(r"-m ([\w.]+)", lint)]
    assert sorted(hook["id"] for hook in repository["hooks"]) == sorted(called)


def test_contributing_names_the_release_that_is_smoke_tested():
    assert f"MONAI {test_previous_monai.PREVIOUS}," in read("CONTRIBUTING.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_modules_that_a_document_names_exist(name):
    text = read(name)
    files = set(re.findall(r"\b((?:configs|scripts|tools|tests|docs)/[\w./]+\.(?:json|py|md))\b", text))
    assert files and [file for file in files if not (ROOT / file).is_file()] == []
    modules = set(re.findall(r"-m ((?:scripts|tools)[\w.]+)", text))
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


def imports_of(path: Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.split(".")[0] for name in names}


def test_the_bundle_never_imports_the_tools_beside_it():
    files = sorted((ROOT / "scripts").rglob("*.py"))
    assert [path for path in files if imports_of(path) & {"tools", "benchmarks", "tests"}] == []
    configs = [path for path in (ROOT / "configs").rglob("*.json") if '"tools.' in path.read_text(encoding="utf-8")]
    assert len(files) > 50 and configs == []
    assert "scripts" in imports_of(ROOT / "tools" / "reports" / "run.py")


def test_old_names_of_the_methods_classes_still_work():
    assert (
        ConfigParser({"ramp": {"_target_": "scripts.objectives.GaussianRampUp", "length": 10}})
        .get_parsed_content("ramp")
        .length
        == 10
    )


@pytest.mark.parametrize(
    ("name", "limit"), re.findall(r"^\| `([\w/.]+)` \| (\d+) ", read("CONTRIBUTING.md"), flags=re.M)
)
def test_no_part_is_longer_than_its_limit(name, limit):
    path = ROOT / name
    files = [path] if path.is_file() else path.rglob("*.py")
    assert 0 < sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= int(limit)
