"""Tests of scripts/training/record.py: what is written about a run, and that only a complete one has it."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch
from conftest import ROOT, small
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from scripts.training.record import RunRecord, git_commit

FILES = ["configs/train.json", "configs/methods/supervised.json", "configs/record.json"]


def make_trainer(tiny: Path, output: Path):
    parser = ConfigParser()
    parser.read_config([str(ROOT / file) for file in FILES])
    parser.update(small(tiny, output, max_iterations=2, val_interval=100))
    return parser.get_parsed_content("train#trainer")


def test_complete_training_leaves_a_record_of_itself(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path)
    trainer.run()
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["iterations"] == 2
    assert record["parameters"] == sum(weight.numel() for weight in trainer.network.parameters())
    assert record["threads"] == torch.get_num_threads()
    assert 0 < record["training_seconds"] < 600 and record["peak_gpu_memory_mb"] is None
    assert record["peak_memory_mb"] > 50
    assert (record["python"], record["torch"]) == (platform.python_version(), torch.__version__)
    assert record["device"] and record["git_commit"] == git_commit(ROOT)


def test_time_of_a_continued_training_is_that_of_all_its_starts(tmp_path):
    (tmp_path / "training_log.csv").write_text("iteration,seconds,loss\n1,0.5,1.0\n3,90.25,0.5\n5,100.0,0.5\n")
    engine = Engine(lambda engine, batch: None)
    engine.network, engine.state.device = torch.nn.Linear(1, 1), torch.device("cpu")
    record = RunRecord(tmp_path)
    engine.state.iteration = 4  # of the checkpoint; what was logged behind it is done again
    record._start(engine)
    record._write(engine)
    assert 90.2 < json.loads((tmp_path / "record.json").read_text())["training_seconds"] < 95


def test_training_that_breaks_off_leaves_no_record_not_even_an_old_one(tiny, tmp_path):
    (tmp_path / "record.json").write_text("{}")
    trainer = make_trainer(tiny, tmp_path)

    def fail() -> None:
        raise RuntimeError("on purpose")

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.run()
    assert not (tmp_path / "record.json").exists()


def test_folder_without_git_has_no_commit(tmp_path, monkeypatch):
    assert git_commit(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_commit(ROOT) is None
