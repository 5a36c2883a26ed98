"""Tests of scripts/training/handlers.py: the log of the terms, gradient norms, the inference overlay, the bar."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from scripts.data import LabelCoding
from scripts.methods import GaussianRampUp, Objective
from scripts.networks import VNet
from scripts.training import (
    FinalWeights,
    GradientNorms,
    InferenceOverlay,
    ProgressBar,
    SemiSupervisedTrainer,
    TermsLog,
    ValidationLog,
)
from scripts.training.handlers import rows_until
from scripts.training.overlay import definition

NORM_COLUMNS = ("near_gradient_norm", "far_gradient_norm", "off_gradient_norm")


class TwoLayers(nn.Module):
    """Two convolutions; the second head does not use the first's last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv3d(1, 2, 3, padding=1)
        self.near = nn.Conv3d(2, 1, 1)
        self.far = nn.Conv3d(2, 1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = torch.relu(self.shared(x))
        return {"near": self.near(features), "far": self.far(features)}


class ThreeTerms(Objective):
    TERMS = ("near", "far", "off")

    def terms(self, heads, targets):
        label = targets["label"]
        terms = {name: ((heads[name][: len(label)] - label) ** 2).mean() for name in ("near", "far")}
        return {name: value for name, value in {**terms, "off": label.mean()}.items() if self.active(name)}


def train(*handlers, iterations: int = 6, epochs: int = 1, objective: Objective | None = None):
    """Trains a small network with the handlers and returns the trainer."""
    torch.manual_seed(0)
    network = TwoLayers()
    generator = torch.Generator().manual_seed(1)
    batch = {
        "image": torch.randn(2, 1, 4, 4, 4, generator=generator),
        "label": torch.randint(0, 2, (2, 1, 4, 4, 4), generator=generator).float(),
    }
    weights = {"near": 0.5, "far": GaussianRampUp(4), "off": 0}
    trainer = SemiSupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        epoch_length=iterations // epochs,
        train_data_loader=[batch] * iterations,
        network=network,
        objective=objective or ThreeTerms(LabelCoding(1), weights),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        train_handlers=list(handlers),
    )
    trainer.run()
    return trainer


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "training_log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Record:
    """Keeps every iteration's loss and gradient norms."""

    def __init__(self) -> None:
        self.losses, self.norms = [], []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.keep)

    def keep(self, engine: Engine) -> None:
        self.losses.append(engine.state.loss)
        self.norms.append(dict(getattr(engine.state, "gradient_norms", {})))


# --- TermsLog ---


def test_log_has_a_value_a_weight_and_a_norm_column_for_every_term_in_the_order_of_the_objective(tmp_path):
    train(TermsLog(tmp_path / "made" / "for" / "it"))
    header = (tmp_path / "made" / "for" / "it" / "training_log.csv").read_text().splitlines()[0]
    assert header == (
        "iteration,seconds,learning_rate,loss,gradient_norm,"
        "near,near_weight,near_gradient_norm,far,far_weight,far_gradient_norm,off,off_weight,off_gradient_norm"
    )


def test_log_holds_the_loss_terms_and_weights_of_its_iterations(tmp_path):
    record = Record()
    train(TermsLog(tmp_path, interval=1), record)
    rows = read(tmp_path)
    assert [int(row["iteration"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, loss in zip(rows, record.losses, strict=True):
        assert float(row["loss"]) == pytest.approx(loss.total.item())
        for term in ("near", "far"):
            assert float(row[term]) == pytest.approx(loss.terms[term].item())
        total = 0.5 * float(row["near"]) + float(row["far_weight"]) * float(row["far"])
        assert float(row["loss"]) == pytest.approx(total)
    assert [float(row["near_weight"]) for row in rows] == [0.5] * 6
    assert [float(row["far_weight"]) for row in rows] == pytest.approx([GaussianRampUp(4)(i) for i in range(6)])
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds) and seconds[0] >= 0


def test_a_term_that_is_off_and_norms_that_are_not_measured_are_blank(tmp_path):
    train(TermsLog(tmp_path, interval=1))
    for row in read(tmp_path):
        assert [row[column] for column in ("off", "off_weight", *NORM_COLUMNS)] == [""] * 5


def test_rows_come_every_interval_from_the_first_iteration_on(tmp_path):
    train(TermsLog(tmp_path, interval=4), iterations=10)
    assert [int(row["iteration"]) for row in read(tmp_path)] == [1, 5, 9]


def test_iterations_are_counted_over_the_epochs(tmp_path):
    train(TermsLog(tmp_path, interval=2), iterations=6, epochs=3)
    assert [int(row["iteration"]) for row in read(tmp_path)] == [1, 3, 5]


def test_a_new_run_begins_a_new_log(tmp_path):
    for _ in range(2):
        train(TermsLog(tmp_path, interval=1))
        assert len(read(tmp_path)) == 6


def test_a_row_that_a_full_disk_cut_off_is_left_out_of_a_continued_log(tmp_path):
    path = tmp_path / "training_log.csv"
    assert rows_until(path, 12) == []
    path.write_bytes(b"iteration,seconds,loss\r\n1,0.5,2\r\n11,0.9,1.5\r\n1")  # of 12
    assert [row["iteration"] for row in rows_until(path, 12)] == ["1", "11"]
    assert [row["iteration"] for row in rows_until(path, 10)] == ["1"]
    assert rows_until(path, 0) == []


def test_learning_rate_is_that_of_the_optimizer(tmp_path):
    train(TermsLog(tmp_path))
    assert float(read(tmp_path)[0]["learning_rate"]) == 0.1


# --- GradientNorms ---


def test_norms_are_those_of_each_terms_own_gradient_before_weighting():
    record = Record()
    train(GradientNorms(interval=1), record, iterations=1)
    torch.manual_seed(0)
    network = TwoLayers()
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 1, 4, 4, 4, generator=generator)
    label = torch.randint(0, 2, (2, 1, 4, 4, 4), generator=generator).float()
    for term in ("near", "far"):
        network.zero_grad()
        ((network(image)[term] - label) ** 2).mean().backward()
        squares = sum((weight.grad**2).sum() for weight in network.parameters() if weight.grad is not None)
        assert record.norms[0][term] == pytest.approx(squares.sqrt().item(), rel=1e-5)
    assert set(record.norms[0]) == {"near", "far"}


def test_norms_with_a_gradient_scaler_are_those_that_float16_would_lose():
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    engine = SimpleNamespace(
        network=torch.nn.ParameterList([weight]),
        scaler=SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: 2.0**16),
        state=SimpleNamespace(iteration=1, loss=SimpleNamespace(terms={"near": 1e-8 * weight.float().sum()})),
    )
    GradientNorms(interval=1)._measure(engine)
    assert engine.state.gradient_norms["near"] == pytest.approx(2e-8, rel=0.05)


def test_a_term_without_a_gradient_has_no_norm():
    record = Record()
    objective = ThreeTerms(LabelCoding(1))
    train(GradientNorms(interval=1), record, iterations=1, objective=objective)
    assert set(record.losses[0].terms) == {"near", "far", "off"}
    assert set(record.norms[0]) == {"near", "far"}


def test_measuring_norms_does_not_change_the_training():
    with_norms, without = train(GradientNorms(interval=2)), train()
    for measured, plain in zip(with_norms.network.parameters(), without.network.parameters(), strict=True):
        assert torch.equal(measured, plain)


def test_norms_are_measured_every_interval_and_logged_in_those_rows_alone(tmp_path):
    record = Record()
    train(GradientNorms(interval=3), TermsLog(tmp_path, interval=1), record)
    assert [bool(norms) for norms in record.norms] == [True, False, False, True, False, False]
    rows = read(tmp_path)
    assert [row["near_gradient_norm"] != "" for row in rows] == [True, False, False, True, False, False]
    assert float(rows[3]["far_gradient_norm"]) == pytest.approx(record.norms[3]["far"])


def test_interval_zero_never_measures():
    record = Record()
    train(GradientNorms(interval=0), record)
    assert record.norms == [{}] * 6


# --- ValidationLog ---


def test_a_continued_run_whose_classes_have_other_names_keeps_what_was_logged(tmp_path):
    (tmp_path / "validation_log.csv").write_text("iteration,epoch,dice,dice_a,dice_b\n1,1,0.5,0.4,0.6\n")
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics, evaluator.state.metric_details = {"dice": 0.75}, {"dice": torch.tensor([[0.5, 1.0]])}
    log = ValidationLog(tmp_path, evaluator, ["x", "y"])
    engine = Engine(lambda engine, batch: None)
    log.attach(engine)
    engine.state.iteration = evaluator.state.epoch = 1
    log._start(engine)
    evaluator.state.epoch = engine.state.epoch = engine.state.iteration = 2
    log._write(engine)
    with (tmp_path / "validation_log.csv").open(newline="") as file:
        former, now = csv.DictReader(file)
    assert former["dice_a"] == "0.4" and former["dice_x"] == "" and now["dice_x"] == "0.5" and now["dice_a"] == ""


# --- InferenceOverlay ---


def test_overlay_holds_the_settings_and_nothing_else(tmp_path):
    settings = {"num_classes": 2, "class_names": ["a", "ä"], "regions": None, "spacing": [1.0, 1.5, 2.0], "amp": False}
    path = tmp_path / "models" / "model.json"
    InferenceOverlay(settings, nn.Conv3d(1, 1, 1)).write(path)
    assert json.loads(path.read_text(encoding="utf-8")) == settings


def test_overlay_builds_the_network_by_its_public_name_with_settings_as_references(tmp_path):
    settings = {"in_channels": 1, "base_filters": 2, "normalization": "group"}
    network = VNet(base_filters=2, tasks=("distance",), dropout=0.25)
    InferenceOverlay(settings, network).write(tmp_path / "model.json")
    content = json.loads((tmp_path / "model.json").read_text())
    assert content.pop("network_def") == {
        "_target_": "scripts.networks.VNet",
        "in_channels": "@in_channels",
        "num_classes": 1,
        "base_filters": "@base_filters",
        "tasks": ["distance"],
        "activation": "sigmoid",
        "upsampling_mode": "transposed",
        "normalization": "batch",  # not the setting's value
        "dropout": 0.25,
    }
    assert content == settings


class Own(VNet):
    def __init__(self, width: int = 2) -> None:
        super().__init__(base_filters=width)


def test_a_network_that_no_package_exports_is_named_by_its_module():
    assert definition(Own(3), {}) == {"_target_": f"{__name__}.Own", "width": 3}


def test_weights_and_their_settings_are_replaced_together_or_not_at_all(tmp_path, caplog):
    path = tmp_path / "model.pt"
    former = FinalWeights(path, nn.Linear(1, 1), InferenceOverlay({"seed": 1}, nn.Identity()))
    train(former)
    network, overlay = nn.Linear(2, 1), InferenceOverlay({"seed": 2}, nn.Identity())
    with pytest.raises(ValueError):
        train(FinalWeights(path, network, overlay), objective=Broken(LabelCoding(1)))
    assert torch.load(path, weights_only=True)["weight"].shape == (1, 1)
    assert json.loads((tmp_path / "model.json").read_text()) == {"seed": 1}
    with caplog.at_level(logging.WARNING):
        train(FinalWeights(path, network, overlay))
    assert f"{path} holds weights of another training" in caplog.text and "--ckpt_dir" in caplog.text
    assert torch.load(path, weights_only=True)["weight"].shape == (1, 2)
    assert json.loads((tmp_path / "model.json").read_text()) == {"seed": 2}


# --- ProgressBar ---


class Broken(Objective):
    TERMS = ("near",)

    def terms(self, heads, targets):
        return {"near": heads["a head that is not there"].mean()}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_counts_all_iterations_and_shows_loss_and_validation(capsys, caplog, monkeypatch, terminal):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    validated = {"metrics": {"val_mean_dice": 0.625}, "key_metric_name": "val_mean_dice", "best_metric": 0.75}
    bar = ProgressBar(SimpleNamespace(state=SimpleNamespace(**validated)))
    trainer = train(bar, iterations=20, epochs=2)
    assert (bar.bar.n, bar.bar.total, bar.bar.disable) == (20, 20, True)  # a closed bar is disabled
    said = capsys.readouterr().err if terminal else next(text for text in caplog.messages if " left" in text)
    assert f"loss={trainer.state.loss.total.item():.3f}, validation dice=0.625 (best 0.750)" in said
    assert terminal or said.startswith("20 of 20, 00:00 left")


def test_bar_closes_and_lets_the_error_through():
    bar = ProgressBar()
    with pytest.raises(ValueError, match="a head that is not there"):
        train(bar, objective=Broken(LabelCoding(1)))
    assert bar.bar.disable


def test_bar_works_on_an_engine_without_a_loss():
    bar = ProgressBar()
    engine = Engine(lambda engine, batch: None)
    bar.attach(engine)
    engine.run(range(10), max_epochs=1)
    assert bar.bar.n == 10
