"""Tests of scripts/methods/{mixing,bcp,teacher}.py: boxes, mixed crops, the teacher that labels them, the loss."""

import numpy as np
import pytest
import torch
from torch import nn

from scripts.data import LabelCoding
from scripts.errors import UserError
from scripts.methods import BCPObjective, GaussianRampUp, SupervisedObjective
from scripts.methods.losses import segmentation_loss
from scripts.methods.mixing import (
    both_ways,
    box_of_share,
    checked_volume,
    cut_mix_box,
    largest_components,
    next_crops,
    random_box,
)
from scripts.methods.teacher import EMATeacher

SHAPE = (6, 9, 12)


class Scale(nn.Module):
    """One weight; its only map is the image times that weight, and dropout shows whether it is in training mode."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.register_buffer("statistic", torch.zeros(()))
        self.modes = []

    def forward_heads(self, x):
        self.modes.append(self.training)
        return {"logits": x * self.weight}


def streams(labeled=2, unlabeled=2):
    """Crops whose values tell them apart: labeled ones are 1, 2, ..., unlabeled ones -1, -2, ...; labels are all 1."""
    image = torch.arange(1.0, labeled + 1).reshape(-1, 1, 1, 1, 1).expand(-1, 1, *SHAPE).clone()
    other = -torch.arange(1.0, unlabeled + 1).reshape(-1, 1, 1, 1, 1).expand(-1, 1, *SHAPE).clone()
    return {"image": image, "label": torch.ones(labeled, 1, *SHAPE)}, {"image": other}


def objective(network=None, num_classes=1, coding=None, **options):
    return BCPObjective(coding or LabelCoding(num_classes), network or Scale(), **options)


# Boxes


def test_boxes_have_the_sides_asked_for_and_lie_everywhere():
    torch.manual_seed(0)
    corners = set()
    for _ in range(600):
        box = box_of_share(SHAPE, 2 / 3)
        assert box.shape == (1, 1, *SHAPE) and box.sum() == 4 * 6 * 8
        inside = box[0, 0].nonzero()
        assert (inside.amax(0) - inside.amin(0) + 1).tolist() == [4, 6, 8]
        corners.add(tuple(inside.amin(0).tolist()))
    assert corners == {(x, y, z) for x in range(3) for y in range(4) for z in range(5)}


def test_a_box_may_be_empty_or_all():
    assert random_box(SHAPE, (0, 3, 3)).sum() == 0 and random_box(SHAPE, SHAPE).all()


def test_cut_mix_boxes_have_a_share_of_the_volume():
    torch.manual_seed(0)
    shares = [cut_mix_box((40, 40, 40), (0.02, 0.4)).float().mean().item() for _ in range(100)]
    assert 0.01 < min(shares) < 0.05 and 0.3 < max(shares) <= 0.4


def test_boxes_depend_on_the_seed_alone():
    def drawn():
        torch.manual_seed(5)
        return box_of_share(SHAPE, 0.5)

    assert torch.equal(drawn(), drawn())


def test_pairs_are_mixed_both_ways_and_the_smaller_batch_is_repeated():
    box = torch.zeros(1, 1, 1, 1, 2, dtype=torch.bool)
    box[..., 1] = True
    first = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1, 1).expand(-1, 1, 1, 1, 2)
    second = torch.tensor([10.0, 20.0]).reshape(2, 1, 1, 1, 1).expand(-1, 1, 1, 1, 2)
    mixed = both_ways(first, second, box).flatten(1).tolist()
    assert mixed == [[1, 10], [2, 20], [3, 10], [10, 1], [20, 2], [10, 3]]


# Views


def test_views_are_both_mixtures_with_the_origin_of_every_label():
    torch.manual_seed(1)
    labeled, unlabeled = streams()
    views = objective().views(labeled, unlabeled, 0)
    image, mask, true, pseudo = (views[key] for key in ("image", "mixed_label", "from_label", "from_pseudo_label"))
    assert len(image) == 4 and torch.equal(true, image > 0) and torch.equal(pseudo, image < 0)
    # The teacher's logits are the image, negative on the unlabeled crops: its mask is empty there.
    assert torch.equal(mask, true.float())
    assert torch.equal(image[0] < 0, image[2] > 0)  # what is box in one is surroundings in the other
    inside = (image[:2] < 0).float().mean((1, 2, 3, 4))
    torch.testing.assert_close(inside, torch.full((2,), 4 * 6 * 8 / (6 * 9 * 12)))
    assert torch.equal(views["label"], labeled["label"])


def test_the_teacher_labels_in_evaluation_mode_and_the_student_is_not_asked():
    network = Scale(-1.0)  # makes foreground of the negative unlabeled crops
    method = objective(network)
    views = method.views(*streams(), 0)
    assert views["mixed_label"].all() and network.modes == []
    assert method.copy_paste.teacher.network.modes == [False]


def test_warm_up_mixes_labeled_crops_alone_and_asks_no_teacher():
    torch.manual_seed(0)
    labeled, unlabeled = streams()
    labeled["label"][1] = 0
    method = objective(warm_up=10)
    views = method.views(labeled, unlabeled, 9)
    assert len(views["image"]) == 2 and views["from_label"].all() and not views["from_pseudo_label"].any()
    assert torch.equal(views["mixed_label"][0], (views["image"][0] == 1).float())
    assert set(views["image"][1].unique().tolist()) == {1, 2}
    assert method.copy_paste.teacher.network.modes == []
    assert len(method.views(labeled, unlabeled, 10)["image"]) == 4


def test_without_unlabeled_crops_labeled_ones_are_mixed():
    labeled, unlabeled = streams(unlabeled=0)
    views = objective().views(labeled, unlabeled, 50)
    assert len(views["image"]) == 2 and (views["image"] > 0).all()


def test_what_is_unknown_is_in_neither_region():
    coding = LabelCoding(1, ignore_value=9)
    labeled, unlabeled = streams()
    labeled["label"][:, :, :3] = 9
    labeled["label"] = coding.mark(labeled["label"].to(torch.int16))
    views = objective(coding=coding).views(labeled, unlabeled, 0)
    upper = views["image"][:, :, :3] > 0
    assert not views["from_label"][:, :, :3].any() and not views["from_pseudo_label"][:, :, :3][upper].any()
    assert torch.equal(views["from_label"][:, :, 3:], views["image"][:, :, 3:] > 0)


def test_exclusive_classes_are_told_apart_and_regions_may_overlap():
    probability = torch.tensor([[0.6, 0.4, 0.9], [0.7, 0.3, 0.95]]).reshape(1, 2, 1, 1, 3)
    assert LabelCoding(2).harden(probability).flatten(2).tolist() == [[[0, 0, 0], [1, 0, 1]]]
    regions = LabelCoding(2, regions=[[1, 2], [2]])
    assert regions.harden(probability).flatten(2).tolist() == [[[1, 0, 1], [1, 0, 1]]]


def test_the_largest_part_of_every_class_stays():
    mask = torch.zeros(1, 2, 1, 1, 6)
    mask[0, 0, 0, 0, [0, 2, 3]] = 1
    mask[0, 1, 0, 0, [5]] = 1
    assert largest_components(mask).flatten(2).tolist() == [[[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]]]


def test_labels_only_with_copy_paste_mixes_labels_along():
    torch.manual_seed(0)
    labeled, unlabeled = streams()
    labeled["label"][1] = 0
    views = SupervisedObjective(LabelCoding(1), copy_paste=0.5).views(labeled, unlabeled, 0)
    assert set(views) == {"image", "label"}
    assert torch.equal(views["label"] == 1, views["image"] == 1)
    assert 0 < (views["image"][0] == 2).sum() == 3 * 4 * 6


# The teacher


def test_teacher_is_the_mean_of_the_first_students_and_then_decays():
    student = Scale(5.0)
    teacher = EMATeacher(student, decay=0.75)
    means = []
    for step, weight in enumerate([1.0, 3.0, 8.0, 0.0, 103.0]):
        student.weight.data.fill_(weight)
        student.statistic.fill_(weight)
        teacher.update(step)
        means.append(teacher.network.weight.item())
        assert teacher.network.statistic.item() == pytest.approx(means[-1])
    assert means == pytest.approx([1, 2, 4, 3, 3 + 100 / 4])


def test_a_later_start_copies_the_student_of_the_step_before():
    student = Scale(5.0)
    teacher = EMATeacher(student, start=3)
    seen = []
    for step in range(5):
        student.weight.data.fill_(float(step))
        teacher.update(step)
        seen.append(teacher.network.weight.item())
    assert seen == pytest.approx([5, 5, 2, 2.5, 3])


@pytest.mark.parametrize("start", [0, 3])
def test_a_teacher_counts_the_steps_of_the_student_and_starts_as_its_copy(start):
    student = Scale(5.0)
    teacher = EMATeacher(student, start=start)
    for step in (start + 1, start + 3):  # gradients of two iterations a step, or skipped batches
        student.weight.data.fill_(float(step))
        teacher.update(step)
    assert teacher.network.weight.item() == pytest.approx(start + 2)
    late = EMATeacher(Scale(5.0), start=3)
    late._student[0].weight.data.fill_(7.0)
    assert late.forward_heads(torch.ones(1))["logits"].item() == pytest.approx(7)


def test_one_crop_is_not_mixed_with_itself():
    with pytest.raises(UserError):
        next_crops(torch.zeros(1, 1, 2, 2, 2))
    labeled, unlabeled = streams(1, 1)
    with pytest.raises(UserError):
        SupervisedObjective(LabelCoding(1), copy_paste=0.5).views(labeled, unlabeled, 0)


@pytest.mark.parametrize("volume", [(0.5, 1.5), (0.4, 0.2), (-0.1, 0.2), (0.2,)])
def test_volume_of_a_box_is_a_share(volume):
    with pytest.raises(UserError, match="box_volume"):
        checked_volume(volume)


# The loss


def test_terms_are_the_segmentation_loss_over_each_region():
    rng = np.random.default_rng(0)
    labeled, unlabeled = streams()
    method = objective(weights={"mixed_pseudo": GaussianRampUp(10, peak=0.5)})
    targets = method.views(labeled, unlabeled, 0)
    logits = torch.tensor(rng.normal(size=(4, 1, *SHAPE)), dtype=torch.float32, requires_grad=True)
    loss = method({"logits": logits}, targets, 10)
    p, y = 1 / (1 + np.exp(-logits.detach().double().numpy())), targets["mixed_label"].numpy()
    for term, region in (("supervised_segmentation", "from_label"), ("mixed_pseudo", "from_pseudo_label")):
        inside = targets[region].numpy()
        pr, yr = p[inside], y[inside]
        entropy = -(yr * np.log(pr) + (1 - yr) * np.log(1 - pr)).mean()
        dice = 1 - (2 * (pr * yr).sum() + 1e-5) / ((pr**2).sum() + (yr**2).sum() + 1e-5)
        assert loss.terms[term].item() == pytest.approx((entropy + dice) / 2, rel=1e-5)
    assert loss.weights == {"supervised_segmentation": 1, "mixed_pseudo": 0.5}
    loss.terms["mixed_pseudo"].backward()
    assert torch.equal(logits.grad != 0, targets["from_pseudo_label"])


def test_a_pseudo_label_that_is_right_is_worth_a_label():
    """Where teacher and labels say the same, both terms together are the losses of the two halves of one truth."""
    method = objective(Scale(-50.0))
    targets = method.views(*streams(), 0)
    logits = torch.full((4, 1, *SHAPE), 2.0)
    loss = method({"logits": logits}, targets, 0)
    whole = segmentation_loss(logits, torch.ones_like(logits))
    torch.testing.assert_close(loss.terms["supervised_segmentation"], whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.terms["mixed_pseudo"], whole, rtol=1e-4, atol=1e-5)


def test_pictures_show_both_directions_with_the_mixed_mask():
    method = objective(Scale(-1.0))
    targets = method.views(*streams(), 0)
    shown = method.pictured(targets)
    assert [index for index, _ in shown.values()] == [0, 2]
    assert all(torch.equal(reference, targets["mixed_label"][index]) for index, reference in shown.values())
    assert len(objective(warm_up=5).pictured(objective(warm_up=5).views(*streams(), 0))) == 1


@pytest.mark.parametrize("option", [{"box_share": 0}, {"box_share": 1}, {"warm_up": -1}, {"ema_decay": 1.0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        objective(**option)
    with pytest.raises(ValueError, match="copy_paste"):
        SupervisedObjective(LabelCoding(1), copy_paste=1)
