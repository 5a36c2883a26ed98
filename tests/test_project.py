"""Tests of the project's own papers: pins, lint, citation and the files and modules that its documents name."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest
import test_previous_monai
import yaml
from conftest import ROOT

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
    assert sorted(hook["id"] for hook in repository["hooks"]) == sorted(re.findall(r"-m (\w+)", lint))


def test_contributing_names_the_release_that_is_smoke_tested():
    assert f"MONAI {test_previous_monai.PREVIOUS}," in read("CONTRIBUTING.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_modules_that_a_document_names_exist(name):
    text = read(name)
    files = set(re.findall(r"\b((?:configs|scripts|tests|docs)/[\w./]+\.(?:json|py|md))\b", text))
    assert files and [file for file in files if not (ROOT / file).is_file()] == []
    modules = set(re.findall(r"-m (scripts[\w.]+)", text))
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
