"""Tests of experiment tracking: what a training with --tracking mlflow leaves for MLflow's own client to read."""

from __future__ import annotations

import csv
import sys

import pytest
from conftest import run_process, small

mlflow = pytest.importorskip("mlflow")


def test_training_is_tracked_with_its_losses_learning_rates_validation_and_length(tiny, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--tracking", "mlflow"]
    command += ["--config_file", "configs/train.json"]
    settings = small(tiny, tmp_path, run_name="first", experiment_name="tiny", val_interval=1)
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    finished = run_process(command)
    assert finished.returncode == 0, finished.stderr

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.run_name == "first" and run.info.status == "FINISHED"
    assert run.data.params["max_epochs"] == "1" and run.data.params["epoch_length"] == "4"

    with (tmp_path / "training_log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]
    assert [metric.value for metric in losses] == pytest.approx([float(row["loss"]) for row in log], rel=1e-6)
    rates = client.get_metric_history(run.info.run_id, "lr_group_0")
    assert len(rates) == 4 and rates[0].value > rates[-1].value > 0
    assert "val_mean_dice" in run.data.metrics
