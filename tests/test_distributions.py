"""Tests of scripts/methods/distributions.py: hand-computed probabilities and entropies, saturated heads."""

import math

import pytest
import torch
from scipy.stats import entropy

from scripts.methods.distributions import log_distributions, normalized_entropy, squared_difference
from scripts.networks.heads import segmentation_heads


def voxel(*values):
    """Return the maps (1, maps, 1, 1, 1) of one voxel."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1, 1)


def test_softmax_head_is_one_distribution_over_background_and_classes():
    log_probability = log_distributions(voxel(math.log(1), math.log(2), math.log(5)), 2)
    assert log_probability.shape == (1, 1, 3, 1, 1, 1)
    assert log_probability.exp().flatten().tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])


def test_sigmoid_head_is_one_distribution_per_class_absent_first():
    log_probability = log_distributions(voxel(math.log(3), 0), 2)
    assert log_probability.shape == (1, 2, 2, 1, 1, 1)
    assert log_probability.exp().flatten().tolist() == pytest.approx([1 / 4, 3 / 4, 1 / 2, 1 / 2])


@pytest.mark.parametrize("probability", [[0.5, 0.5], [0.25, 0.75], [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]])
def test_normalized_entropy_is_scipys_to_the_base_of_the_outcomes(probability):
    log_probability = torch.tensor(probability).log().reshape(1, 1, -1, 1, 1, 1)
    value = normalized_entropy(log_probability)
    assert value.shape == (1, 1, 1, 1, 1, 1)
    assert value.item() == pytest.approx(entropy(probability, base=len(probability)), abs=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3], ids=["softmax", "sigmoid"])
def test_entropy_of_a_saturated_head_is_zero_with_a_finite_gradient(num_classes):
    logits = voxel(300, -300, -200).requires_grad_()
    value = normalized_entropy(log_distributions(logits, num_classes))
    value.sum().backward()
    assert value.abs().max().item() == 0
    assert logits.grad.isfinite().all()


def test_squared_difference_is_that_of_the_probabilities():
    first, second = (torch.tensor(p).log().reshape(1, 1, 2, 1, 1, 1) for p in ([0.2, 0.8], [0.5, 0.5]))
    assert squared_difference(first, second).flatten().tolist() == pytest.approx([0.09, 0.09])


def test_segmentation_heads_are_those_of_the_network_and_not_the_teachers():
    heads = dict.fromkeys(["logits", "logits_phi", "distance_phi", "teacher_logits", "log_mean_logits"])
    assert list(segmentation_heads(heads)) == ["logits", "logits_phi"]
