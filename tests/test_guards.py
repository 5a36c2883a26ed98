"""Tests of scripts/training/guards.py: steps that are not finite, and what is said of them."""

from __future__ import annotations

import contextlib
import csv
import logging
import re

import pytest
import torch
from conftest import run_bundle, small
from ignite.engine import Engine, Events
from torch import nn

from scripts.data import LabelCoding
from scripts.methods import Objective
from scripts.training import (
    CollapseWarning,
    FiniteLoss,
    SemiSupervisedTrainer,
    TermsLog,
)
from scripts.training.guards import MOST_DROPPED, NotFiniteError

TRAIN = "configs/train.json"
EXTENT = 4
BAD = 666.0  # an image of this value spoils a step


class Normed(nn.Module):
    """A convolution and a BatchNorm, which has running averages."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.layers(x)}


class Spoilt(Objective):
    """Two terms; a batch with an image of the value ``BAD`` makes "far" NaN, or only its gradient."""

    TERMS = ("near", "far")

    def __init__(self, *, only_gradient: bool = False) -> None:
        super().__init__(LabelCoding(1))
        self.only_gradient = only_gradient

    def terms(self, heads, targets):
        logits = heads["logits"]
        far = (logits - 1).square().mean()
        if (targets["image"] == BAD).any():
            # The derivative of the root at zero is infinite, and infinity times zero is NaN.
            far = far + (0 * logits.sum()).sqrt() if self.only_gradient else far * float("nan")
        return {"near": logits.square().mean(), "far": far}


def batch(value: float) -> dict:
    generator = torch.Generator().manual_seed(int(value))
    image = torch.full((2, 1, *(EXTENT,) * 3), float(value))
    image[0] = torch.randn(image[0].shape, generator=generator)
    return {"image": image, "label": torch.zeros_like(image), "file": [f"a{value:g}.nii", f"b{value:g}.nii"]}


def train(values, *handlers, objective=None, network=None, **options) -> SemiSupervisedTrainer:
    torch.manual_seed(0)
    network = network or Normed()
    trainer = SemiSupervisedTrainer(
        device="cpu",
        max_epochs=1,
        epoch_length=len(values),
        train_data_loader=[batch(value) for value in values],
        network=network,
        objective=objective or Spoilt(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
        train_handlers=list(handlers),
        **options,
    )
    trainer.run()
    return trainer


def state(trainer: SemiSupervisedTrainer) -> list[torch.Tensor]:
    momentum = [slot["momentum_buffer"] for slot in trainer.optimizer.state.values()]
    return [*trainer.network.state_dict().values(), *momentum]


# --- a loss or a gradient that is not finite ---


def test_the_error_names_term_iteration_and_files_and_the_weights_are_those_before(tmp_path):
    network = Normed()
    with pytest.raises(NotFiniteError) as error:
        train([1, 2, BAD, 4], FiniteLoss(), network=network)
    text = str(error.value)
    assert text.startswith(
        "the loss is not finite: far = nan, at iteration 3, with crops of labeled: a666.nii, b666.nii."
    )
    assert "near" not in text and "weights are not finite" not in text
    assert all(weight.isfinite().all() for weight in network.parameters())


def test_the_norm_of_the_gradient_is_left_for_the_log(tmp_path):
    seen = []

    class Measure:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.measure)

        def measure(self, engine):
            gradients = torch.cat([weight.grad.flatten() for weight in engine.network.parameters()])
            seen.append((engine.state.gradient_norm.item(), gradients.double().square().sum().sqrt().item()))

    train([1, 2], FiniteLoss(), TermsLog(tmp_path, interval=1), Measure())
    with (tmp_path / "training_log.csv").open(newline="") as file:
        logged = [float(row["gradient_norm"]) for row in csv.DictReader(file)]
    assert logged == [found for found, _ in seen] == pytest.approx([expected for _, expected in seen])


def test_without_the_guard_the_weights_are_spoilt():
    trainer = train([1, BAD])
    assert not all(weight.isfinite().all() for weight in trainer.network.parameters())


def test_weights_that_were_spoilt_before_are_said_to_be(tmp_path):
    network = Normed()
    nn.init.constant_(network.layers[0].weight, float("inf"))
    with pytest.raises(NotFiniteError, match="The weights are not finite either"):
        train([1], FiniteLoss(), network=network)


def test_images_that_are_not_finite_are_said_to_be(tmp_path):
    with pytest.raises(NotFiniteError, match="near = nan, far = nan.*The image of the crops is not finite"):
        train([1], FiniteLoss(), prepare_nan_image())


def prepare_nan_image():
    """A handler that puts a NaN into the image of an iteration before its forward pass."""

    class Spoil:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_STARTED, self.spoil)

        def spoil(self, engine):
            engine.state.batch["image"][0, 0, 0, 0, 0] = float("nan")

    return Spoil()


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    network = Normed()
    with pytest.raises(NotFiniteError, match=r"the gradient is not finite \(in 4 weights, first layers.0.weight\)"):
        train([1, BAD], FiniteLoss(), objective=Spoilt(only_gradient=True), network=network)
    assert all(weight.isfinite().all() for weight in network.parameters())


# --- a gradient scaler, which on a CPU exists, too ---


@pytest.fixture
def scaled(monkeypatch):
    """Makes ``amp`` scale the gradients, as it does on a GPU, without autocast."""
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", lambda: torch.amp.GradScaler("cpu"))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def test_under_a_scaler_the_norm_that_is_logged_is_that_of_the_gradient_itself(tmp_path, scaled):
    for folder, options in (("scaled", {"amp": True}), ("plain", {})):
        trainer = train([1, 2, 3], FiniteLoss(), TermsLog(tmp_path / folder, interval=1), **options)
        assert (trainer.scaler is not None) == bool(options)
    scaled_rows, plain_rows = (
        list(csv.DictReader((tmp_path / folder / "training_log.csv").open(newline="")))
        for folder in ("scaled", "plain")
    )
    assert len(plain_rows) == 3
    for now, then in zip(scaled_rows, plain_rows, strict=True):
        assert float(now["gradient_norm"]) == pytest.approx(float(then["gradient_norm"]), rel=1e-6)


def test_a_gradient_that_the_scaler_drops_stops_a_run_only_when_no_scale_helps(tmp_path, scaled):
    def overflowing(steps: list[float]) -> SemiSupervisedTrainer:
        return train(steps, FiniteLoss(), objective=Spoilt(only_gradient=True), amp=True)

    trainer = overflowing([1, *[BAD] * MOST_DROPPED, 1, BAD])
    assert all(weight.isfinite().all() for weight in trainer.network.parameters())
    message = "the gradient is not finite .* at iteration 42.*in the 40 steps before, which the gradient scaler dropped"
    with pytest.raises(NotFiniteError, match=message):
        overflowing([1, *[BAD] * (MOST_DROPPED + 1)])


def test_a_loss_that_is_not_finite_stops_under_a_scaler_at_once(tmp_path, scaled):
    with pytest.raises(NotFiniteError, match="far = nan, at iteration 2,"):
        train([1, BAD], FiniteLoss(), amp=True)


def test_bfloat16_on_a_cpu_scales_nothing_and_is_guarded_as_without():
    types, options = [], {"dtype": torch.bfloat16}
    network = Normed()
    network.register_forward_hook(lambda _, __, heads: types.extend(head.dtype for head in heads.values()))
    trainer = train([1], FiniteLoss(), network=network, amp=True, amp_kwargs=options)
    assert set(types) == {torch.bfloat16} and trainer.scaler is None
    with pytest.raises(NotFiniteError, match="the gradient is not finite .* at iteration 2"):
        train([1, BAD], FiniteLoss(), objective=Spoilt(only_gradient=True), amp=True, amp_kwargs=options)


@pytest.mark.parametrize("only_gradient", [False, True], ids=["loss", "gradient"])
def test_a_skipped_batch_leaves_the_training_as_if_it_had_not_been(tmp_path, caplog, only_gradient):
    guarded = train(
        [1, BAD, 2, BAD, 3],
        FiniteLoss("skip"),
        objective=Spoilt(only_gradient=only_gradient),
    )
    without = train([1, 2, 3])
    for skipped, plain in zip(state(guarded), state(without), strict=True):
        assert torch.equal(skipped, plain)
    assert guarded.state.iteration == 5
    assert "at iteration 2" in caplog.text and "the batch is skipped (2 so far)" in caplog.text


def test_skipping_ends_after_ten_in_succession(tmp_path):
    guard = FiniteLoss("skip")
    train([BAD] * 10 + [1] + [BAD] * 10, guard)
    assert guard.skipped == 20
    with pytest.raises(NotFiniteError, match="at iteration 12.*after 10 skipped in succession"):
        train([1] + [BAD] * 11, FiniteLoss("skip"))


def test_unknown_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="non_finite_loss is 'ignore'"):
        FiniteLoss("ignore")


def test_watching_does_not_change_a_training(tmp_path):
    plain = train([1, 2, 3])
    for policy in ("stop", "skip"):
        watched = train([1, 2, 3], FiniteLoss(policy))
        assert all(torch.equal(a, b) for a, b in zip(state(watched), state(plain), strict=True))


def test_a_run_that_diverges_ends_in_one_line_that_names_the_crops(tiny, tmp_path):
    finished = run_bundle("training", TRAIN, **small(tiny, tmp_path, learning_rate=1e30))
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    message = finished.stderr.rsplit("\nerror: ", 1)[1]
    found = re.search(r"not finite.*at iteration (\d), with crops of labeled: (.*); unlabeled: (.*?)\. ", message)
    labeled, unlabeled = (set(group.split(", ")) for group in found.groups()[1:])
    assert labeled <= {str(tiny / "images" / f"training_{n}.nii.gz") for n in range(3)}
    assert unlabeled <= {str(tiny / "images" / f"training_{n}.nii.gz") for n in range(3, 6)}
    assert not (tmp_path / "models" / "model.pt").exists()


# --- collapse ---


def validate(warning: CollapseWarning, *validations: list[tuple[list[float], list[float]]]) -> None:
    """Runs an engine whose cases have the given fraction of foreground per class in prediction and label."""

    def volume(fractions: list[float]) -> torch.Tensor:
        channels = torch.zeros(len(fractions), 2, 2, 1)
        for channel, fraction in zip(channels, fractions):
            channel.view(-1)[: round(4 * fraction)] = 1
        return channels

    for cases in validations:
        engine = Engine(lambda engine, case: [{"pred": volume(case[0]), "label": volume(case[1])}])
        warning.attach(engine)
        engine.run(cases)


def test_a_class_that_is_empty_in_three_validations_is_named(caplog):
    warning = CollapseWarning(["left atrium", "right"])
    cases = [([0, 0.5], [0.25, 0.25]), ([0, 0], [0.5, 0.25])]
    validate(warning, cases, cases)
    assert caplog.text == ""
    validate(warning, cases)
    assert "the segmentation of left atrium has been empty in all 2 cases of the last 3 validations" in caplog.text
    assert "right" not in caplog.text


def test_full_is_named_too_and_classes_are_numbered(caplog):
    validate(CollapseWarning(validations=1), [([0.25, 1], [0.25, 0.5])])
    assert "the segmentation of class 2 has been full in all 1 cases of the last 1 validations" in caplog.text


def test_a_validation_in_between_starts_the_count_again(caplog):
    collapsed, well = [([0], [0.5])], [([0.25], [0.5])]
    validate(CollapseWarning(), collapsed, collapsed, well, collapsed, collapsed)
    assert caplog.text == ""


def test_an_empty_segmentation_of_what_is_not_there_is_right(caplog):
    validate(CollapseWarning(validations=1), [([0], [0]), ([0], [0])], [([1], [1])])
    assert caplog.text == ""


@pytest.mark.parametrize("of_the_other", [0.0, 0.5])
def test_a_class_counts_as_empty_if_it_is_in_the_cases_of_all_processes(caplog, monkeypatch, of_the_other):
    other = [(torch.tensor([of_the_other]), torch.tensor([0.5]))]
    monkeypatch.setattr("scripts.training.guards.gathered", lambda own: [own, other])
    validate(CollapseWarning(validations=1), [([0], [0.5])])
    assert ("in all 2 cases" in caplog.text) == (of_the_other == 0)


def test_validation_of_the_bundle_reports_its_collapse(workflow, tiny, tmp_path, caplog):
    empty = {"_target_": "torch.nn.Threshold", "threshold": 1e9, "value": -9.0}
    bundle = workflow(TRAIN, **small(tiny, tmp_path, max_iterations=3, epoch_length=1, num_epochs=3, val_interval=1))
    bundle.parser["validate#evaluator#network"] = empty
    bundle.initialize()
    with caplog.at_level(logging.WARNING):
        bundle.run()
    assert "the segmentation of class 1 has been empty in all 1 cases of the last 3 validations" in caplog.text
