"""Tests of scripts/methods/{teacher,mean_teacher}.py: the moving average, what the teacher shares, the terms."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import norm
from torch import nn

from scripts.data import LabelCoding
from scripts.methods import MeanTeacherObjective, UAMTObjective
from scripts.methods.losses import segmentation_loss
from scripts.networks import DualTaskVNet, VNet

SHAPE = (3, 4, 2)


class Scale(nn.Module):
    """A network of one weight; its maps are the image's channels times that weight."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.calls = 0

    def forward_heads(self, x):
        self.calls += 1
        return {"logits": x * self.weight}


def batch(num_classes=2, *, crops=5, labeled=2, maps=3, seed=0):
    """Return images (crops, maps, ...), and targets with the labels of the first ``labeled``."""
    rng = np.random.default_rng(seed)
    image = torch.tensor(2 * rng.normal(size=(crops, maps, *SHAPE)), dtype=torch.float32)
    label = torch.tensor(rng.integers(0, num_classes + 1, (labeled, 1, *SHAPE)), dtype=torch.float32)
    return {"image": image, "label": label}


# The moving average


def test_first_hundred_steps_average_and_later_ones_decay():
    student = Scale(5.0)
    objective = MeanTeacherObjective(LabelCoding(2), student)
    averages = []
    for step, weight in enumerate([1.0, 3.0, 8.0, 0.0]):
        student.weight.data.fill_(weight)
        objective.after_step(step)
        averages.append(objective.teacher.network.weight.item())
    assert averages == pytest.approx([1, 2, 4, 3])
    student.weight.data.fill_(103.0)
    objective.teacher.updates = 98
    objective.after_step(98)
    assert objective.teacher.network.weight.item() == pytest.approx(3 + 100 / 99)
    objective.teacher.network.weight.data.fill_(3.0)
    objective.teacher.updates = 5000
    objective.after_step(5000)
    assert objective.teacher.network.weight.item() == pytest.approx(3 + 100 * 0.01)


def test_every_weight_is_averaged_and_no_buffer():
    student = VNet(base_filters=1)
    objective = MeanTeacherObjective(LabelCoding(1), student, ema_decay=0.75)
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.add_(4)
    before = copy.deepcopy(objective.teacher.network.state_dict())
    objective.teacher.updates = 10
    objective.after_step(10)
    weights = dict(student.named_parameters())
    for name, value in objective.teacher.network.state_dict().items():
        moved = 1.0 if name in weights else 0.0
        torch.testing.assert_close(value.float(), before[name].float() + moved, msg=name)


def test_teacher_shares_neither_weights_nor_statistics_with_the_student():
    student = VNet(base_filters=2).train()
    objective = MeanTeacherObjective(LabelCoding(1), student)
    mine, its = student.state_dict(), objective.teacher.network.state_dict()
    assert {tensor.data_ptr() for tensor in mine.values()}.isdisjoint(tensor.data_ptr() for tensor in its.values())
    start = copy.deepcopy(mine)
    objective.teach(torch.randn(2, 1, 16, 16, 16))
    assert all(torch.equal(mine[name], start[name]) for name in start)
    assert not torch.equal(its["encoder.levels.0.0.1.running_mean"], start["encoder.levels.0.0.1.running_mean"])


def test_state_of_the_objective_is_the_teachers_and_restores_it():
    student = VNet(base_filters=1)
    objective = MeanTeacherObjective(LabelCoding(1), student)
    objective.teacher.updates = 7
    state = objective.state_dict()
    names = {f"teacher.network.{name}" for name in student.state_dict()}
    assert set(state) == names | {"teacher._extra_state"}
    other = MeanTeacherObjective(LabelCoding(1), VNet(base_filters=1))
    other.load_state_dict(state)
    assert all(torch.equal(other.state_dict()[name], state[name]) for name in names)
    assert other.teacher.updates == 7


# The teacher's predictions


def test_teacher_receives_no_gradient_and_the_optimiser_none_of_its_weights():
    student = Scale()
    objective = MeanTeacherObjective(LabelCoding(2), student)
    assert not any(weight.requires_grad for weight in objective.parameters())
    targets = batch()
    objective(student.forward_heads(targets["image"]), targets, 0).total.backward()
    assert student.weight.grad is not None and objective.teacher.network.weight.grad is None


@pytest.mark.parametrize("mode", [True, False])
def test_teacher_drops_out_whatever_the_mode_of_objective_and_student(mode):
    torch.manual_seed(0)
    student = VNet(base_filters=4).train(mode)
    objective = MeanTeacherObjective(LabelCoding(1), student, noise=0).train(mode)
    image = torch.randn(2, 1, 16, 16, 16)
    assert not torch.equal(objective.teach(image)["logits"], objective.teach(image)["logits"])
    assert student.training is mode


def test_input_noise_is_gaussian_and_clipped_at_two_deviations():
    torch.manual_seed(0)
    image = torch.full((1, 1, 64, 64, 64), 3.0)
    objective = MeanTeacherObjective(LabelCoding(1), Scale())
    noise = objective.teach(image)["logits"] - image
    assert noise.abs().max().item() == pytest.approx(0.2, abs=1e-6)
    assert (noise.abs() > 0.19999).float().mean().item() == pytest.approx(2 * norm.sf(2), rel=0.05)
    assert (noise.abs() < 0.1).float().mean().item() == pytest.approx(1 - 2 * norm.sf(1), rel=0.02)
    assert abs(noise.mean().item()) < 1e-3
    assert not torch.equal(objective.teach(image)["logits"] - image, noise)


# The terms


@pytest.mark.parametrize("num_classes, maps", [(1, 2), (2, 3)])
def test_terms_of_a_softmax_head_equal_the_reference(num_classes, maps):
    student = Scale()
    coding = LabelCoding(num_classes)
    objective = MeanTeacherObjective(coding, student, {"consistency": 0.1}, noise=0)
    objective.teacher.network.weight.data.fill_(0.5)
    targets = batch(num_classes, maps=maps)
    heads = student.forward_heads(targets["image"])
    loss = objective(heads, targets, 0)
    z = targets["image"].double().numpy()[2:]
    expected = ((softmax(z, axis=1) - softmax(0.5 * z, axis=1)) ** 2).mean()
    assert loss.terms["consistency"].item() == pytest.approx(expected, rel=1e-5)
    supervised = segmentation_loss(heads["logits"][:2], coding.encode(targets["label"])).item()
    assert loss.terms["supervised_segmentation"].item() == pytest.approx(supervised)
    assert loss.total.item() == pytest.approx(supervised + 0.1 * expected, rel=1e-5)


def test_overlapping_regions_are_compared_class_by_class():
    student = Scale()
    objective = MeanTeacherObjective(LabelCoding(2, regions=[[1, 2], [2]]), student, noise=0)
    objective.teacher.network.weight.data.fill_(-1.0)
    targets = batch(maps=2)
    loss = objective(student.forward_heads(targets["image"]), targets, 0)
    p = 1 / (1 + np.exp(-targets["image"].double().numpy()[2:]))
    assert loss.terms["consistency"].item() == pytest.approx(((p - (1 - p)) ** 2).mean(), rel=1e-5)


def test_heads_of_several_decoders_have_their_own_teacher():
    torch.manual_seed(0)
    student = DualTaskVNet(base_filters=1, dropout=0).train()
    objective = MeanTeacherObjective(LabelCoding(1), student, noise=0)
    image = torch.randn(4, 1, 16, 16, 16)
    # Student and teacher are the same function as yet, and with these crops alone in the batch see the same statistics.
    heads = {name: torch.cat([head[:2], head]) for name, head in student.forward_heads(image[2:]).items()}
    targets = {"image": image, "label": torch.zeros(2, 1, 16, 16, 16)}
    assert objective(heads, targets, 0).terms["consistency"].item() < 1e-10
    with torch.no_grad():
        objective.teacher.network.segmentation_head_psi.bias += 1
    assert objective(heads, targets, 0).terms["consistency"].item() > 1e-3


def test_consistency_trains_the_unlabeled_crops_and_the_labels_the_labeled_ones():
    student = Scale()
    objective = MeanTeacherObjective(LabelCoding(2), student)
    targets = batch()
    logits = targets["image"].clone().requires_grad_()
    terms = objective({"logits": logits}, targets, 0).terms
    (gradient,) = torch.autograd.grad(terms["consistency"], logits)
    assert (gradient.abs().amax((1, 2, 3, 4)) > 0).tolist() == [False, False, True, True, True]
    (gradient,) = torch.autograd.grad(terms["supervised_segmentation"], logits)
    assert (gradient.abs().amax((1, 2, 3, 4)) > 0).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("crops, weights", [(2, None), (5, {"consistency": 0})], ids=["no-unlabeled", "off"])
def test_teacher_is_not_run_where_there_is_nothing_to_teach(crops, weights):
    student = Scale()
    objective = MeanTeacherObjective(LabelCoding(2), student, weights)
    targets = batch(crops=crops)
    loss = objective(student.forward_heads(targets["image"]), targets, 0)
    assert set(loss.terms) == {"supervised_segmentation"}
    assert objective.teacher.network.calls == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it is at least 0 and below 1"),
        ({"noise": -0.1}, "noise is -0.1; a standard deviation is 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MeanTeacherObjective(LabelCoding(1), Scale(), **options)


@pytest.mark.parametrize("kind", [MeanTeacherObjective, lambda *args, **options: UAMTObjective(*args, 10, **options)])
def test_autocast_reaches_the_teacher_and_leaves_the_loss_in_float32(kind):
    torch.manual_seed(0)
    student = VNet(base_filters=2, activation="softmax", dropout=0).train()
    objective = kind(LabelCoding(1), student, noise=0)
    with torch.no_grad():
        objective.teacher.network.segmentation_head.bias[1] += 3
    targets = {"image": torch.randn(4, 1, 16, 16, 16), "label": torch.ones(2, 1, 16, 16, 16)}
    expected = objective(student(targets["image"]), targets, 0).terms["consistency"]
    with torch.autocast("cpu", torch.bfloat16):
        assert objective.teach(targets["image"])["logits"].dtype == torch.bfloat16
        value = objective(student(targets["image"]), targets, 0).terms["consistency"]
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=0.05) and expected.item() > 0.01
