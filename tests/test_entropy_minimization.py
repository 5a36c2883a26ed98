"""Tests of scripts/methods/entropy_minimization.py: values against scipy, and which crops receive gradient."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from scripts.data import LabelCoding
from scripts.methods import EntropyMinimizationObjective
from scripts.methods.losses import segmentation_loss


def make(num_classes=2, *, maps, seed=0):
    """Return logits (4, maps, 4, 3, 2) and label values (2, 1, 4, 3, 2)."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(2 * rng.normal(size=(4, maps, 4, 3, 2)), dtype=torch.float32).requires_grad_()
    return logits, torch.tensor(rng.integers(0, num_classes + 1, (2, 1, 4, 3, 2)), dtype=torch.float32)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_terms_of_a_softmax_head_equal_the_reference(num_classes):
    logits, label = make(num_classes, maps=num_classes + 1)
    coding = LabelCoding(num_classes)
    loss = EntropyMinimizationObjective(coding, {"entropy": 0.1})({"logits": logits}, {"label": label}, 0)
    p = softmax(logits.detach().double().numpy(), axis=1)
    expected = entropy(p, base=num_classes + 1, axis=1).mean()
    assert loss.terms["entropy"].item() == pytest.approx(expected, rel=1e-5)
    supervised = segmentation_loss(logits[:2], coding.encode(label)).item()
    assert loss.terms["supervised_segmentation"].item() == pytest.approx(supervised)
    assert loss.total.item() == pytest.approx(supervised + 0.1 * expected, rel=1e-5)


def test_overlapping_regions_have_an_entropy_each():
    logits, label = make(maps=2)
    objective = EntropyMinimizationObjective(LabelCoding(2, regions=[[1, 2], [2]]))
    loss = objective({"logits": logits}, {"label": label}, 0)
    p = 1 / (1 + np.exp(-logits.detach().double().numpy()))
    expected = entropy(np.stack([1 - p, p]), base=2, axis=0).mean()
    assert loss.terms["entropy"].item() == pytest.approx(expected, rel=1e-5)


def test_heads_of_several_decoders_are_summed():
    logits, label = make(maps=3)
    one = EntropyMinimizationObjective(LabelCoding(2))({"logits": logits}, {"label": label}, 0)
    two = EntropyMinimizationObjective(LabelCoding(2))({"logits_a": logits, "logits_b": logits}, {"label": label}, 0)
    assert two.total.item() == pytest.approx(2 * one.total.item(), rel=1e-6)


def test_entropy_trains_all_crops_and_the_labels_theirs():
    logits, label = make(maps=3)
    terms = EntropyMinimizationObjective(LabelCoding(2))({"logits": logits}, {"label": label}, 0).terms
    (gradient,) = torch.autograd.grad(terms["entropy"], logits, retain_graph=True)
    assert (gradient.abs().amax((1, 2, 3, 4)) > 0).tolist() == [True] * 4
    # Downhill, the probable becomes more probable.
    assert (
        torch.autograd.functional.jvp(lambda z: torch.softmax(z, 1).amax(1).mean(), logits.detach(), -gradient)[1] > 0
    )
    (gradient,) = torch.autograd.grad(terms["supervised_segmentation"], logits)
    assert (gradient.abs().amax((1, 2, 3, 4)) > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("off", ["entropy", "supervised_segmentation"])
def test_a_term_of_weight_zero_is_not_computed(off):
    logits, label = make(maps=3)
    loss = EntropyMinimizationObjective(LabelCoding(2), {off: 0})({"logits": logits}, {"label": label}, 0)
    assert set(loss.terms) == {"entropy", "supervised_segmentation"} - {off}
