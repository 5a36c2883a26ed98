"""Tests of scripts/training/trainer.py: how the streams are joined, and that a step is plain PyTorch's."""

from __future__ import annotations

import copy
import csv
from contextlib import nullcontext
from itertools import count, islice

import pytest
import torch
import torch._dynamo
from conftest import small
from ignite.engine import Events
from monai.data import CacheDataset, MetaTensor
from monai.engines.utils import IterationEvents
from monai.handlers import from_engine
from monai.transforms import Compose
from torch import nn

from scripts.data import LabelCoding, crop_stream
from scripts.distance import DistanceToSegmentation, ExactDistance, SegmentationToDistance
from scripts.errors import UserError
from scripts.methods import DBiSLObjective, GaussianRampUp, Objective
from scripts.networks import DualTaskVNet, separate_streams
from scripts.training import GraphedForward, RunEvents, SemiSupervisedTrainer, trainable_parameters

EXTENT = 4
ITERATIONS = 4


class Scale(nn.Module):
    """A network of one weight whose head is the image times that weight, so that the image can be read off it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x * self.weight}


class Recorder(Objective):
    """The mean of the head, and a memory of what it was called with."""

    TERMS = ("mean",)

    def __init__(self) -> None:
        super().__init__(LabelCoding(1))
        self.iterations: list[int] = []
        self.images: list[torch.Tensor] = []
        self.targets: list[dict[str, torch.Tensor]] = []

    def terms(self, heads, targets):
        return {"mean": heads["logits"].mean()}

    def forward(self, heads, targets, iteration):
        self.iterations.append(iteration)
        self.images.append(heads["logits"].detach())
        self.targets.append(targets)
        return super().forward(heads, targets, iteration)


def constant(*values: float) -> torch.Tensor:
    """A batch (B, 1, H, W, D) whose sample i is filled with ``values[i]``."""
    return torch.tensor(values)[:, None, None, None, None].expand(-1, 1, *(EXTENT,) * 3).clone()


def labeled_batches(size: int, **more: torch.Tensor):
    """Endless batches of images 0, 1, 2, ... with labels of zeros, ones, zeros, ..."""
    for first in count(step=size):
        numbers = [float(first + i) for i in range(size)]
        yield {"image": constant(*numbers), "label": constant(*[n % 2 for n in numbers]), **more}


class UnlabeledBatches:
    """Endless batches of images -1, -2, -3, ..., from the start for every iterator, like a real loader."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self):
        for first in count(step=self.size):
            yield {"image": constant(*[-1.0 - first - i for i in range(self.size)])}


def make_trainer(*, labeled=None, unlabeled=None, network=None, objective=None, lr=0.0, epochs=1, **options):
    network = network or Scale()
    return SemiSupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        epoch_length=ITERATIONS // epochs,
        train_data_loader=labeled_batches(2) if labeled is None else labeled,
        unlabeled_data_loader=unlabeled,
        network=network,
        objective=objective or Recorder(),
        optimizer=torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9),
        **options,
    )


def first_voxels(images: torch.Tensor) -> list[float]:
    return images[:, 0, 0, 0, 0].tolist()


# --- the batch ---


@pytest.mark.parametrize(
    "sizes, joined",
    [((2, 2), [[0, 1, -1, -2], [2, 3, -3, -4]]), ((1, 3), [[0, -1, -2, -3], [1, -4, -5, -6]])],
    ids=["2+2", "1+3"],
)
def test_labeled_images_come_first_then_the_unlabeled_ones(sizes, joined):
    trainer = make_trainer(labeled=labeled_batches(sizes[0]), unlabeled=UnlabeledBatches(sizes[1]))
    trainer.run()
    assert [first_voxels(images) for images in trainer.objective.images[:2]] == joined
    for i, targets in enumerate(trainer.objective.targets):
        assert first_voxels(targets["label"]) == [(i * sizes[0] + j) % 2 for j in range(sizes[0])]


def test_network_and_objective_see_plain_tensors():
    labeled = ({key: MetaTensor(value) for key, value in batch.items()} for batch in labeled_batches(2))
    unlabeled = ({"image": MetaTensor(constant(-1.0))} for _ in count())
    trainer = make_trainer(labeled=labeled, unlabeled=unlabeled)
    trainer.run()
    seen = [*trainer.objective.images, *(value for targets in trainer.objective.targets for value in targets.values())]
    assert {type(value) for value in seen} == {torch.Tensor}


def test_without_an_unlabeled_stream_the_labeled_crops_are_the_batch():
    trainer = make_trainer(labeled=labeled_batches(4))
    trainer.run()
    assert [first_voxels(images) for images in trainer.objective.images[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_on_a_cpu_memory_of_one_iteration_is_kept_for_the_next(monkeypatch):
    trainer, seen = make_trainer(), []
    monkeypatch.setattr(
        "scripts.training.trainer.keep_freed_memory", lambda: seen.append(len(trainer.objective.iterations))
    )
    trainer.run()
    assert seen == [0] and len(trainer.objective.iterations) == ITERATIONS  # before the first iteration


def test_unlabeled_stream_goes_on_from_epoch_to_epoch():
    trainer = make_trainer(unlabeled=UnlabeledBatches(1), epochs=2)
    trainer.run()
    assert [images[-1].mean().item() for images in trainer.objective.images] == [-1.0 - n for n in range(4)]


def crops(number: int):
    """Seeded stream ``number`` over ten images that are all different."""
    images = [{"image": constant(100.0 * number + n)[0], "label": constant(n % 2)[0]} for n in range(10)]
    return crop_stream(CacheDataset(images, Compose([]), progress=False), batch_size=2, seed=1, stream=number)


def test_a_run_that_goes_on_draws_the_next_crops_of_both_streams_and_one_that_starts_again_the_same():
    trainer = make_trainer(labeled=crops(0), unlabeled=crops(1))
    for max_epochs in (1, 3, 3):  # 4 iterations, 8 more, and because all are done: all 12 again
        trainer.state.max_epochs = max_epochs
        trainer.run()
    streams = [[batch["image"] for batch in islice(iter(crops(number)), 12)] for number in (0, 1)]
    expected = [torch.cat(pair).as_subclass(torch.Tensor) for pair in zip(*streams)]
    assert len(trainer.objective.images) == 24
    for seen, images in zip(trainer.objective.images, [*expected, *expected], strict=True):
        assert torch.equal(seen.as_subclass(torch.Tensor), images)
    assert trainer.objective.iterations == [*range(12), *range(12)]


def test_images_and_targets_are_moved_to_the_device():
    trainer = make_trainer(unlabeled=UnlabeledBatches(1), to_kwargs={"memory_format": torch.channels_last_3d})
    batch = {**next(labeled_batches(2)), "distance": constant(0.0, 0.5)}
    images, targets = trainer.prepare_batch(batch, torch.device("meta"), False, **trainer.to_kwargs)
    assert images.shape == (3, 1, EXTENT, EXTENT, EXTENT) and images.device.type == "meta"
    assert images.is_contiguous(memory_format=torch.channels_last_3d)
    assert {name: target.device.type for name, target in targets.items()} == {
        "image": "meta",
        "label": "meta",
        "distance": "meta",
    }


def test_other_tensors_of_the_labeled_data_reach_the_objective_and_other_things_do_not():
    distance = constant(0.25, 0.5)
    trainer = make_trainer(labeled=labeled_batches(2, distance=distance, name="case"))
    trainer.run()
    assert set(trainer.objective.targets[0]) == {"image", "label", "distance"}
    assert torch.equal(trainer.objective.targets[0]["distance"], distance)


def test_objective_sees_the_images_that_the_network_saw():
    trainer = make_trainer(unlabeled=UnlabeledBatches(1))
    trainer.run()
    assert torch.equal(trainer.objective.targets[-1]["image"], trainer.state.output[0]["image"])
    assert len(trainer.state.output[0]["image"]) == 3


# --- the step ---


def test_objective_is_told_of_each_step_after_the_weights_have_moved():
    trainer = make_trainer(lr=0.1)
    seen = []
    before = [w.detach().clone() for w in trainer.network.parameters()]

    def after_step(iteration):
        moved = any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters()))
        seen.append((iteration, moved))

    trainer.objective.after_step = after_step
    trainer.run()
    assert seen == [(i, True) for i in range(trainer.state.iteration)]


def test_objective_is_told_the_iteration_counted_from_zero_over_all_epochs():
    trainer = make_trainer(epochs=2)
    trainer.run()
    assert trainer.objective.iterations == list(range(ITERATIONS))


def test_all_iteration_events_fire_once_per_iteration_in_order():
    trainer = make_trainer()
    events = [
        IterationEvents.FORWARD_COMPLETED,
        IterationEvents.LOSS_COMPLETED,
        IterationEvents.BACKWARD_COMPLETED,
        IterationEvents.MODEL_COMPLETED,
    ]
    fired = []
    for event in reversed(events):
        trainer.add_event_handler(event, lambda engine, event=event: fired.append(event))
    trainer.run()
    assert fired == events * ITERATIONS


def test_state_holds_images_targets_heads_and_the_loss_with_its_terms():
    trainer = make_trainer(unlabeled=UnlabeledBatches(2))
    trainer.run()
    (output,), loss = trainer.state.output, trainer.state.loss
    assert output["image"].shape[0] == 4 and output["label"]["label"].shape[0] == 2
    assert set(output["pred"]) == {"logits"}
    assert output["loss"].item() == pytest.approx(loss.terms["mean"].item()) == pytest.approx(loss.total.item())


@pytest.mark.parametrize("error", [None, ValueError("failed"), SystemExit(143)], ids=repr)
def test_the_end_of_a_run_is_announced_with_what_ended_it(error):
    trainer, seen = make_trainer(), []
    trainer.add_event_handler(RunEvents.ENDED, lambda engine: seen.append(engine.state.error))

    @trainer.on(Events.ITERATION_COMPLETED(once=2))
    def fail():
        if error:
            raise error

    with pytest.raises(type(error)) if error else nullcontext():
        trainer.run()
    assert seen == [error]


def test_monais_handlers_find_the_loss_as_a_number():
    """With a plain dictionary from_engine gives a tuple, at which the handler of --tracking mlflow fails."""
    trainer = make_trainer()
    trainer.run()
    assert float(from_engine(["loss"], first=True)(trainer.state.output)) == pytest.approx(
        trainer.state.loss.total.item()
    )


def test_terms_still_carry_their_graph_when_the_loss_is_completed():
    trainer = make_trainer()
    gradients = []

    @trainer.on(IterationEvents.LOSS_COMPLETED)
    def measure(engine):
        (gradient,) = torch.autograd.grad(engine.state.loss.terms["mean"], engine.network.weight, retain_graph=True)
        gradients.append(gradient.item())

    trainer.run()
    assert gradients == pytest.approx([0.5, 2.5, 4.5, 6.5])


def random_batches(seed: int, *, with_label: bool):
    """Endless batches of two crops of noise, with labels of half a crop."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        batch = {"image": torch.randn(2, 1, 16, 16, 16, generator=generator)}
        if with_label:
            batch["label"] = (batch["image"].cumsum(2) > 0).float()
        yield batch


def dbisl() -> DBiSLObjective:
    weights = {"supervised_segmentation": 0.5, "consistency_r2s": 0.5, "pseudo": GaussianRampUp(3)}
    s2r = SegmentationToDistance(ExactDistance(), factor=0.5, detach_extrema=True)
    return DBiSLObjective(LabelCoding(1), s2r, DistanceToSegmentation(k=20), weights)


def test_training_equals_a_plain_loop_weight_for_weight():
    torch.manual_seed(0)
    network = DualTaskVNet(base_filters=2, dropout=0)
    start = copy.deepcopy(network.state_dict())
    make_trainer(
        labeled=random_batches(1, with_label=True),
        unlabeled=random_batches(2, with_label=False),
        network=network,
        objective=dbisl(),
        lr=0.01,
    ).run()

    plain = DualTaskVNet(base_filters=2, dropout=0)
    plain.load_state_dict(start)
    plain.train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    objective = dbisl()
    labeled, unlabeled = random_batches(1, with_label=True), random_batches(2, with_label=False)
    for iteration in range(ITERATIONS):
        batch = next(labeled)
        heads = plain(torch.cat([batch["image"], next(unlabeled)["image"]]))
        terms = objective.terms(heads, {"label": batch["label"]})
        beta = GaussianRampUp(3)(iteration)
        weights = {"supervised_segmentation": 0.5, "consistency_r2s": 0.5, "pseudo": beta}
        optimizer.zero_grad()
        sum(weights.get(name, 1.0) * value for name, value in terms.items()).backward()
        optimizer.step()

    for (name, trained), expected in zip(network.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(trained, expected), name
    assert not torch.equal(network.encoder.levels[0][0][0].weight, start["encoder.levels.0.0.0.weight"])


# --- a client that trains longer ---


def test_a_client_may_run_more_epochs_than_planned_and_training_goes_on_slowly(workflow, tiny, tmp_path):
    bundle = workflow("configs/train.json", **small(tiny, tmp_path, train__trainer__max_epochs=3))
    bundle.initialize()
    bundle.run()
    with (tmp_path / "training_log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["iteration"]) for row in rows] == list(range(1, 13))
    rates = [float(row["learning_rate"]) for row in rows]
    assert all(0 < rate <= 0.01 for rate in rates)
    assert rates[4:] == [rates[-1]] * 8
    assert all(float(row["loss"]) == float(row["loss"]) for row in rows)
    assert all(weight.isfinite().all() for weight in torch.load(tmp_path / "models" / "model.pt").values())


# The views of a batch


class Views(Recorder):
    """Shows every crop twice, the second time negative, and has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[dict, dict, int]] = []

    def views(self, labeled, unlabeled, iteration):
        self.seen.append((labeled, unlabeled, iteration))
        both = torch.cat([labeled["image"], unlabeled["image"]])
        return {**labeled, "image": torch.cat([both, -both]), "noise": torch.rand(3)}

    def terms(self, heads, targets):
        return {"mean": heads["logits"].mean() + self.shift}


class TwoKeys(UnlabeledBatches):
    """Unlabeled batches with a second view from the loader."""

    def __iter__(self):
        for batch in super().__iter__():
            yield {**batch, "second": batch["image"] + 100}


def test_the_network_sees_the_views_that_the_objective_makes():
    objective = Views()
    trainer = make_trainer(unlabeled=TwoKeys(2), objective=objective)
    trainer.run()
    labeled, unlabeled, _ = objective.seen[0]
    assert len(objective.images[0]) == 2 * (len(labeled["image"]) + len(unlabeled["image"]))
    assert torch.equal(unlabeled["second"], unlabeled["image"] + 100)
    assert [iteration for *_, iteration in objective.seen] == objective.iterations == list(range(ITERATIONS))
    assert all("noise" in targets for targets in objective.targets)


def test_further_keys_of_the_unlabeled_stream_reach_the_terms_by_default():
    objective = Recorder()
    make_trainer(unlabeled=TwoKeys(2), objective=objective).run()
    targets = objective.targets[0]
    assert torch.equal(targets["unlabeled_second"], targets["image"][-2:] + 100)


def test_parameters_of_the_objective_are_optimised_and_frozen_ones_are_not():
    network, objective = Scale(), Views()
    objective.teacher = copy.deepcopy(network).requires_grad_(False)
    found = trainable_parameters(network, objective)
    assert [id(weight) for weight in found] == [id(network.weight), id(objective.shift)]


class Doubled(Recorder):
    """Makes the forward pass its own."""

    def predict(self, network, image):
        return {name: 2 * head for name, head in network(image).items()}


def test_the_objective_may_make_the_forward_pass_its_own():
    objective = Doubled()
    trainer = make_trainer(objective=objective)
    trainer.run()
    (output,) = trainer.state.output
    assert output["pred"]["logits"].shape == output["image"].shape
    torch.testing.assert_close(objective.images[0], 2 * objective.targets[0]["image"])


def test_a_forward_pass_of_the_objective_is_not_recorded_as_a_graph():
    with pytest.raises(UserError, match="Doubled"):
        make_trainer(objective=Doubled(), inferer=GraphedForward())


def test_batch_norm_of_separate_streams_is_told_how_many_crops_are_labeled():
    class Normalized(Scale):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm3d(1)

        def forward(self, x):
            return {"logits": self.norm(super().forward(x)["logits"])}

    network = separate_streams(Normalized())
    make_trainer(network=network, labeled=labeled_batches(1), unlabeled=UnlabeledBatches(3)).run()
    assert network.norm.labeled == 1


# torch.compile


@pytest.mark.parametrize("objective", [Recorder, Doubled])
def test_compiled_the_weights_are_those_of_the_plain_training(objective):
    weights = []
    for backend in (False, "aot_eager"):
        torch.manual_seed(0)
        trainer = make_trainer(unlabeled=UnlabeledBatches(2), objective=objective(), lr=0.01, compile=backend)
        trainer.run()
        assert list(trainer.network.state_dict()) == ["weight"]
        weights.append(trainer.network.weight.item())
    assert weights[1] == pytest.approx(weights[0]) != 1


def test_what_cannot_be_compiled_is_said():
    with pytest.raises(UserError, match="compile is 'fast'.*inductor"):
        make_trainer(compile="fast")
    with pytest.raises(UserError, match="cuda_graphs"):
        make_trainer(compile="aot_eager", inferer=GraphedForward())

    def without_a_compiler(*_):
        raise RuntimeError("no g++")

    torch._dynamo.reset()
    torch._dynamo.register_backend(without_a_compiler, name="broken")
    with pytest.raises(Exception, match="no g[+][+]") as error:
        make_trainer(compile="broken").run()
    assert any("compile to false" in note for note in error.value.__notes__)
