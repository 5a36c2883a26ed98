"""Tests of scripts/methods/ua_mt.py: the threshold, the mask and the masked consistency against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import nn

from scripts.data import LabelCoding
from scripts.methods import UAMTObjective

SHAPE = (6, 5, 4)
T = 1000


class Passing(nn.Module):
    """A network that gives its image as logits."""

    def forward_heads(self, x):
        return {"logits": x}


def noise(seed, *shape, scale=2.0):
    return torch.tensor(scale * np.random.default_rng(seed).normal(size=shape), dtype=torch.float32)


def objective_with_passes(num_classes, predictions, **options):
    """Return an objective whose teacher predicts ``predictions`` in order, and the images that it was given."""
    objective = UAMTObjective(options.pop("coding", LabelCoding(num_classes)), Passing(), T, **options)
    queue, given = list(predictions), []

    def teach(image):
        given.append(image)
        return {"logits": queue.pop(0)}

    objective.teach = teach
    return objective, given


def batch(num_classes, maps):
    label = torch.tensor(np.random.default_rng(9).integers(0, num_classes + 1, (1, 1, *SHAPE)), dtype=torch.float32)
    return {"image": noise(8, 3, 1, *SHAPE), "label": label}, noise(7, 3, maps, *SHAPE).requires_grad_()


@pytest.mark.parametrize("num_classes", [1, 2])
@pytest.mark.parametrize("iteration", [0, 400, T, 2 * T])
def test_consistency_is_the_masked_mean_of_the_reference(num_classes, iteration):
    maps = num_classes + 1
    common = noise(1, 2, maps, *SHAPE, scale=1.5)
    predictions = [common + noise(10 + i, 2, maps, *SHAPE, scale=0.5) for i in range(9)]
    objective, given = objective_with_passes(num_classes, predictions)
    targets, logits = batch(num_classes, maps)
    loss = objective({"logits": logits}, targets, iteration)

    mean = np.mean([softmax(z.double().numpy(), axis=1) for z in predictions[1:]], axis=0)
    ramp = math.exp(-5 * (1 - min(iteration / T, 1)) ** 2)
    mask = entropy(mean, axis=1) < (0.75 + 0.25 * ramp) * math.log(maps)
    assert 0.2 < mask.mean() and (mask.mean() < 0.95 if iteration < T else mask.all())
    p, q = (softmax(z.detach().double().numpy(), axis=1) for z in (logits[1:], predictions[0]))
    expected = (((p - q) ** 2).sum(1) * mask).sum() / (maps * mask.sum())
    assert loss.terms["consistency"].item() == pytest.approx(expected, rel=1e-4)
    # One pass for the target and eight for the mask, all of them on the unlabeled crops.
    assert len(given) == 9 and all(torch.equal(image, targets["image"][1:]) for image in given)


def test_sigmoid_heads_have_a_mask_for_every_class():
    coding = LabelCoding(2, regions=[[1, 2], [2]])
    certain, uncertain = torch.full((2, 1, *SHAPE), 4.0), torch.zeros(2, 1, *SHAPE)
    predictions = [noise(3, 2, 2, *SHAPE)] + [torch.cat([certain, uncertain], 1)] * 8
    objective, _ = objective_with_passes(2, predictions, coding=coding)
    targets, logits = batch(2, 2)
    value = objective({"logits": logits}, targets, 0).terms["consistency"]
    p, q = (1 / (1 + np.exp(-z.detach().double().numpy())) for z in (logits[1:, 0], predictions[0][:, 0]))
    assert value.item() == pytest.approx(((p - q) ** 2).mean(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[1:, 0].abs().max() > 0 and gradient[:, 1].abs().max() == 0 and gradient[0].abs().max() == 0


def test_nothing_certain_is_a_consistency_of_zero_with_a_zero_gradient():
    objective, _ = objective_with_passes(1, [torch.zeros(2, 2, *SHAPE)] * 9)
    targets, logits = batch(1, 2)
    value = objective({"logits": logits}, targets, 0).terms["consistency"]
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0 and gradient.abs().max() == 0


def test_passes_that_saturate_in_different_directions_are_uncertain_and_finite():
    # Each is sure of itself, their mean is 1/2: what a mean of logits or of entropies would miss.
    predictions = [torch.zeros(2, 2, *SHAPE)] + [(-1.0) ** i * torch.tensor([400.0, -400.0]) for i in range(8)]
    predictions[1:] = [z.reshape(1, 2, 1, 1, 1).expand(2, 2, *SHAPE) for z in predictions[1:]]
    objective, _ = objective_with_passes(1, predictions)
    targets, logits = batch(1, 2)
    loss = objective({"logits": logits}, targets, 0)
    assert loss.terms["consistency"].item() == 0 and loss.total.isfinite()


def test_student_alone_is_trained_and_on_its_own_crops():
    objective = UAMTObjective(LabelCoding(1), Passing(), T, noise=0.1)
    targets, logits = batch(1, 2)
    targets["image"] = noise(8, 3, 2, *SHAPE).requires_grad_()
    loss = objective({"logits": logits}, targets, T)
    loss.total.backward()
    assert targets["image"].grad is None
    (gradient,) = torch.autograd.grad(objective({"logits": logits}, targets, T).terms["consistency"], logits)
    assert (gradient.abs().amax((1, 2, 3, 4)) > 0).tolist() == [False, True, True]


def test_without_unlabeled_crops_labels_alone_are_left():
    objective, given = objective_with_passes(1, [])
    targets, logits = batch(1, 2)
    targets["image"] = targets["image"][:1]
    assert set(objective({"logits": logits[:1]}, targets, 0).terms) == {"supervised_segmentation"} and not given


def test_no_pass_is_refused():
    with pytest.raises(ValueError, match="passes is 0; the entropy needs at least one prediction"):
        UAMTObjective(LabelCoding(1), Passing(), T, passes=0)
