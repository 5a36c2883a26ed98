"""Tests of tools/active/monai_label.py with the real MONAI Label, where it is installed (docs/clients.md)."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel
import numpy as np
import pytest
from conftest import ROOT
from test_clients import NAME, answer, bundle, elsewhere, expected_mask, labeled_cases, serving, weights  # noqa: F401

APP = ROOT / "tools" / "active" / "monai_label.py"


def test_training_takes_the_unlabeled_studies(bundle, elsewhere, tmp_path, monkeypatch):  # noqa: F811
    """With them the weights are others than without; what else decides them is the same."""
    interface = pytest.importorskip("monailabel.interfaces.app", reason="monailabel is not installed (docs/clients.md)")
    stand_in = ModuleType("bundle_app")
    stand_in.MyApp = type("MyApp", (interface.MONAILabelApp,), {})
    monkeypatch.setitem(sys.modules, "bundle_app", stand_in)
    spec = importlib.util.spec_from_file_location("active_app", APP)
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    cases = labeled_cases(tmp_path / "studies")
    kept = (bundle / "models" / "model.pt").read_bytes()

    def trained(unlabeled: list[str]) -> dict:
        (bundle / "models" / "model.pt").write_bytes(kept)
        store = SimpleNamespace(
            datalist=lambda: cases[:3],
            get_unlabeled_images=lambda: unlabeled,
            get_image_uri=lambda study: cases[int(study)]["image"],
        )
        options = {"max_epochs": 1, "device": "cpu", "pretrained": True, "val_split": 0.0, "tracking": "None"}
        assert app.SemiSupervisedTrain(str(bundle), conf={})({"model": NAME, **options}, store) == {}
        return weights(bundle)

    without, with_one, again = trained([]), trained(["3"]), trained(["3"])
    name = "encoder.levels.0.0.0.weight"
    assert (with_one[name] == again[name]).all() and (with_one[name] != without[name]).any()


def test_server_ranks_proposes_and_trains(tmp_path):
    def change(folder: Path) -> None:
        (folder / "main.py").rename(folder / "bundle_app.py")
        shutil.copy(APP, folder / "main.py")

    with serving(tmp_path, change=change, conf={"repository": str(ROOT)}) as server:
        strategies = set(json.loads(answer(f"{server}/info/"))["strategies"])
        assert strategies == {"random", "first", "disagreement", "diversity", "combined"}
        model = tmp_path / "apps" / "monaibundle" / "model" / NAME

        def next_study(strategy: str) -> str:
            return json.loads(answer(f"{server}/activelearning/{strategy}", "POST", json={"device": "cpu"}))["id"]

        first = next_study("combined")
        proposal = tmp_path / "studies" / "labels" / "original" / f"{first}.nii.gz"
        mask = np.asarray(nibabel.load(proposal).dataobj)
        assert np.array_equal(mask, expected_mask(model, str(tmp_path / "studies" / f"{first}.nii.gz"), tmp_path))
        seen = [first]
        for _ in range(2):
            label = (tmp_path / "cases" / "labels" / f"{seen[-1]}.nii.gz").read_bytes()
            files = {"label": (f"{seen[-1]}.nii.gz", label)}
            answer(f"{server}/datastore/label?image={seen[-1]}", "PUT", files=files)
            seen.append(next_study("combined"))
        assert len(set(seen)) == 3
        before = weights(model)
        options = {"max_epochs": 1, "pretrained": True, "val_split": 0.0, "tracking": "None", "device": "cpu"}
        answer(f"{server}/train/{NAME}?run_sync=true", "POST", json=options)
        after = weights(model)
        assert any((after[name] != before[name]).any() for name in before)
        assert "Training with 2 unlabeled studies" in (tmp_path / "server.log").read_text(encoding="utf-8")
        assert next_study("disagreement") not in seen[:2]
