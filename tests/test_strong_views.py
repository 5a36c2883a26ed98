"""Tests of scripts/methods/{cps,unimatch,ad_mt}.py: what each crop is compared with, and what receives gradient."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from scripts.data import LabelCoding
from scripts.errors import UserError
from scripts.methods import ADMTObjective, CPSObjective, UniMatchObjective
from scripts.methods.losses import dice_loss, segmentation_loss
from scripts.networks import TwinVNet, VNet

SHAPE = (6, 6, 6)


class Twin(nn.Module):
    """Two heads: the image, and the image with the other sign."""

    def forward_heads(self, x):
        return {"logits_a": 4 * x, "logits_b": -4 * x}


class Copy(nn.Module):
    """One head that is a multiple of the image; it can be encoded and decoded."""

    def __init__(self, factor=4.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward_heads(self, x):
        return self.decode(self.encode(x))

    def forward(self, x):
        return self.forward_heads(x)

    def encode(self, x):
        return [x]

    def decode(self, features):
        return {"logits": features[0] * self.factor}


def streams(labeled=2, unlabeled=2, seed=0):
    rng = np.random.default_rng(seed)
    image = torch.tensor(rng.normal(size=(labeled + unlabeled, 1, *SHAPE)), dtype=torch.float32)
    label = torch.tensor(rng.integers(0, 2, (labeled, 1, *SHAPE)), dtype=torch.float32)
    return {"image": image[:labeled], "label": label}, {"image": image[labeled:]}


def loss_of(objective, network, labeled, unlabeled, iteration=0):
    targets = objective.views(labeled, unlabeled, iteration)
    heads = {
        name: head.detach().requires_grad_() for name, head in objective.predict(network, targets["image"]).items()
    }
    return objective(heads, targets, iteration), heads, targets


# CPS


def test_cps_compares_each_head_with_the_mask_of_the_other():
    network = Twin()
    network.forward = network.forward_heads
    labeled, unlabeled = streams()
    loss, heads, _ = loss_of(CPSObjective(LabelCoding(1), network, cut_mix=False), network, labeled, unlabeled)
    a, b = heads["logits_a"][2:], heads["logits_b"][2:]
    expected = segmentation_loss(a, (b > 0).float()) + segmentation_loss(b, (a > 0).float())
    torch.testing.assert_close(loss.terms["cross_pseudo"], expected)
    loss.terms["cross_pseudo"].backward()
    assert all((head.grad[:2] == 0).all() and (head.grad[2:] != 0).any() for head in heads.values())


def test_cps_mixes_crops_and_masks_by_one_box():
    torch.manual_seed(0)
    network = Twin()
    labeled, unlabeled = streams()
    targets = CPSObjective(LabelCoding(1), network, box_volume=(0.3, 0.3)).views(labeled, unlabeled, 0)
    mixed = targets["image"][2:]
    assert torch.equal(targets["mask_of_logits_a"], (mixed > 0).float())
    assert torch.equal(targets["mask_of_logits_b"], (mixed < 0).float())
    foreign = mixed[0] == unlabeled["image"][1]
    assert 0 < foreign.float().mean() < 0.4 and torch.equal(mixed[0][~foreign], unlabeled["image"][0][~foreign])


def test_cps_trains_two_networks_of_different_weights():
    network = TwinVNet(base_filters=2, dropout=0.0)
    a, b = (list(part.parameters()) for part in (network.network_a, network.network_b))
    assert any(not torch.equal(x, y) for x, y in zip(a, b))
    image = torch.randn(1, 1, 16, 16, 16)
    both = network.eval()(image)
    torch.testing.assert_close(both, 0.5 * (network.network_a(image) + network.network_b(image)))


# UniMatch


def test_cps_needs_two_heads():
    labeled, unlabeled = streams()
    with pytest.raises(UserError, match="two segmentation heads"):
        loss_of(CPSObjective(LabelCoding(1), network := Copy()), network, labeled, unlabeled)


def unimatch(network, augmentation=lambda image: image + 10, **options):
    return UniMatchObjective(LabelCoding(1), network, augmentation, **options)


def test_unimatch_shows_labeled_weak_and_two_strong_views():
    labeled, unlabeled = streams(unlabeled=4)
    torch.manual_seed(2)
    targets = unimatch(Copy()).views(labeled, unlabeled, 0)
    assert len(targets["image"]) == 2 + 2 + 2 + 2
    assert torch.equal(targets["image"][2:4], unlabeled["image"][:2])
    for number in range(2):
        strong, mask = targets["image"][4 + 2 * number : 6 + 2 * number] - 10, targets[f"strong_mask_{number}"]
        assert torch.equal(mask, (strong > 0).float())  # wherever a voxel came from, its mask came along


def test_unimatch_learns_where_the_mask_is_confident():
    labeled, unlabeled = streams(unlabeled=4)
    objective = unimatch(network := Copy(), confidence=0.9, feature_dropout=0.0)
    loss, heads, targets = loss_of(objective, network, labeled, unlabeled)
    weak = targets["image"][2:4]
    confident = weak.abs() >= math.log(9) / 4  # sigmoid(4 x) is 0.9 there
    assert torch.equal(targets["confident"], confident)
    logits = heads["logits"]
    expected = dice_loss(logits[2:4].sigmoid(), (weak > 0).float(), confident)
    torch.testing.assert_close(loss.terms["features"], expected)
    strong = sum(
        dice_loss(
            logits[4 + 2 * i : 6 + 2 * i].sigmoid(), targets[f"strong_mask_{i}"], targets[f"strong_confident_{i}"]
        )
        for i in range(2)
    )
    torch.testing.assert_close(loss.terms["strong"], strong)


def test_unimatch_drops_channels_of_the_weak_views_alone():
    torch.manual_seed(0)
    labeled, unlabeled = streams(unlabeled=4)
    objective = unimatch(network := Copy(), feature_dropout=0.9)
    targets = objective.views(labeled, unlabeled, 0)
    logits = objective.predict(network, targets["image"])["logits"]
    plain = targets["image"] * network.factor
    assert torch.equal(logits[:2], plain[:2]) and torch.equal(logits[4:], plain[4:])
    assert (logits[2:4] == 0).all()


@pytest.mark.parametrize(("weights", "crops"), [({"features": 0}, 6), ({"strong": 0}, 4), ({}, 8)])
def test_unimatch_makes_no_view_that_it_does_not_use(weights, crops):
    labeled, unlabeled = streams(unlabeled=4)
    objective = unimatch(network := Copy(), weights=weights)
    loss, _, targets = loss_of(objective, network, labeled, unlabeled)
    assert len(targets["image"]) == crops
    assert set(loss.terms) == set(objective.TERMS) - set(weights)


def test_unimatch_of_a_real_network_reaches_every_weight():
    network = VNet(base_filters=2, activation="softmax", dropout=0.0).train()
    objective = unimatch(network, confidence=0.5)
    labeled = {"image": torch.randn(2, 1, 16, 16, 16), "label": (torch.rand(2, 1, 16, 16, 16) > 0.5).float()}
    targets = objective.views(labeled, {"image": torch.randn(4, 1, 16, 16, 16)}, 0)
    objective(objective.predict(network, targets["image"]), targets, 0).total.backward()
    assert all(weight.grad is not None for weight in network.parameters())


# AD-MT


def ad_mt(network, **options):
    return ADMTObjective(LabelCoding(1), network, lambda image: image + 10, **options)


def test_ad_mt_takes_turns_of_random_length_that_a_resume_repeats():
    objective = ad_mt(Copy(), seed=3, longest_turn=5)
    turns = [objective.active_teacher(i) for i in range(60)]
    changes = [i for i in range(1, 60) if turns[i] != turns[i - 1]]
    lengths = set(np.diff([0, *changes]).tolist())
    assert lengths <= set(range(1, 6)) and len(lengths) > 1
    half = ad_mt(Copy(), seed=3, longest_turn=5)
    for i in range(31):
        half.active_teacher(i)
    continued = ad_mt(Copy(), seed=3, longest_turn=5)
    continued.load_state_dict(copy.deepcopy(half.state_dict()))
    assert [continued.active_teacher(i) for i in range(31, 60)] == turns[31:]


def test_ad_mt_updates_the_active_teacher_alone():
    network = Copy(1.0)
    objective = ad_mt(network, longest_turn=1)
    network.factor.data.fill_(9.0)
    active = objective.active_teacher(0)
    objective.after_step(0)
    factors = [teacher.network.factor.item() for teacher in objective.teachers]
    assert factors[active] == pytest.approx(9.0) and factors[1 - active] == pytest.approx(1.0)


def test_ad_mt_changes_intensities_in_one_turn_and_mixes_in_the_other():
    objective = ad_mt(Copy(), longest_turn=1)
    labeled, unlabeled = streams()
    views = {objective.active_teacher(i): objective.views(labeled, unlabeled, i) for i in range(2)}
    assert torch.equal(views[0]["image"][2:], unlabeled["image"] + 10)
    mixed = views[1]["image"][2:]
    assert all(torch.isin(mixed[i], unlabeled["image"]).all() for i in range(2))
    # The teachers' maps are mixed by the same box: each is of the voxel that the student sees.
    present = views[1]["taught"][0, :, 0, 1].exp()
    torch.testing.assert_close(present, (4 * mixed[:, 0]).sigmoid())


def test_ad_mt_target_by_hand():
    def log(*present):
        p = torch.tensor(present).reshape(1, 1, 1, 1, 1, -1)
        return torch.cat([1 - p, p], 2).log()

    objective = ad_mt(Copy())
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2) for p in (0.9, 0.6)]
    weight = math.exp(-entropy[0]) / (math.exp(-entropy[0]) + math.exp(-entropy[1]))
    # Agreement; conflict with a student surer than both; conflict with a less sure student.
    taught = torch.stack([log(0.9, 0.9, 0.9), log(0.6, 0.4, 0.4)])
    target = objective.target(taught, log(0.01, 0.01, 0.45))[:, :, 1].flatten().tolist()
    expected = [weight * 0.9 + (1 - weight) * 0.6, 0.01, weight * 0.9 + (1 - weight) * 0.4]
    assert target == pytest.approx(expected, rel=1e-4)


def test_ad_mt_loss_is_the_cross_entropy_of_confident_voxels():
    labeled, unlabeled = streams()
    objective = ad_mt(network := Copy(), confidence=0.95, longest_turn=1)
    loss, heads, targets = loss_of(objective, network, labeled, unlabeled, iteration=0)
    student = heads["logits"][2:].detach().double()
    taught = targets["taught"][0, :, 0, 1].exp()[:, None].double()  # both teachers are the same, and never in conflict
    certain = torch.maximum(taught, 1 - taught) >= 0.95
    wanted = (taught > 0.5).double()
    entropy = nn.functional.binary_cross_entropy_with_logits(student, wanted, reduction="none")
    torch.testing.assert_close(loss.terms["pseudo"].double(), entropy[certain].mean(), rtol=1e-4, atol=1e-6)
    loss.terms["pseudo"].backward()
    assert torch.equal(heads["logits"].grad[2:] != 0, certain)


@pytest.mark.parametrize("make", [unimatch, ad_mt, lambda n, **o: CPSObjective(LabelCoding(1), n)])
def test_a_batch_without_unlabeled_crops_is_supervised_alone(make):
    network = Copy()
    labeled, _ = streams()
    objective = make(network)
    targets = objective.views(labeled, {"image": labeled["image"][:0]}, 0)
    heads = {"logits_a": network(targets["image"])["logits"], "logits_b": network(targets["image"])["logits"]}
    heads = heads if isinstance(objective, CPSObjective) else {"logits": heads["logits_a"]}
    assert set(objective(heads, targets, 0).terms) == {"supervised_segmentation"}
