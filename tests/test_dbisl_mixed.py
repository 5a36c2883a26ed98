"""Tests of scripts/methods/dbisl_mixed.py: the map of a mixed mask, whose voxels are whose, and DBiSL's own terms."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from scripts.data import LabelCoding
from scripts.distance import DistanceToSegmentation, ExactDistance, SegmentationToDistance
from scripts.methods import DBiSLMixedObjective
from scripts.methods.dbisl_mixed import nearest_of_other_side
from scripts.networks import DualTaskVNet

SHAPE = (16, 16, 16)


def objective(network, num_classes=1, **options):
    transforms = SegmentationToDistance(ExactDistance(), factor=1), DistanceToSegmentation(1500)
    return DBiSLMixedObjective(LabelCoding(num_classes), network, *transforms, **options)


def streams(seed=0):
    torch.manual_seed(seed)
    label = torch.zeros(2, 1, *SHAPE)
    label[:, :, 4:10, 5:12, 3:11] = 1
    return {"image": torch.randn(2, 1, *SHAPE), "label": label}, {"image": torch.randn(2, 1, *SHAPE)}


def network():
    torch.manual_seed(1)
    return DualTaskVNet(base_filters=2, dropout=0.0, normalization="group").train()


def test_nearest_voxel_of_the_other_side_is_scipys():
    mask = torch.zeros(2, 2, 9, 8, 7)
    mask[0, 0, 2:5, 3:6, 1:4], mask[0, 1, 8, 7, 6], mask[1, 0, :, :, :4] = 1, 1, 1
    found = nearest_of_other_side(mask)
    position = np.indices((9, 8, 7)).reshape(3, -1)
    for b, c in ((0, 0), (0, 1), (1, 0)):
        own = mask[b, c].numpy().astype(bool)
        steps = np.linalg.norm(position - position[:, found[b, c].numpy()], axis=0).reshape(9, 8, 7)
        expected = np.where(own, distance_transform_edt(own), distance_transform_edt(~own))
        np.testing.assert_allclose(steps, expected, atol=1e-6)
    assert torch.equal(found[1, 1], torch.arange(9 * 8 * 7))  # nothing on the other side


@pytest.mark.parametrize("source", ["nearest_seed", "voxel"])
def test_supervised_distance_is_the_map_of_the_mixed_mask_by_origin(source):
    student = network()
    method = objective(student, pseudo_weight=0.5, agreement=False, source=source)
    targets = method.views(*streams(), 0)
    targets["mixed_label"][2:] = (torch.rand(2, 1, *SHAPE) > 0.9).float()
    heads = student.forward_heads(targets["image"])
    loss = method(heads, targets, 0)
    total = 0.0
    for region, weight in (("from_label", 1.0), ("from_pseudo_label", 0.5)):
        errors, number = np.zeros(2), 0
        for n in range(4):
            own = targets["mixed_label"][n, 0].numpy() > 0.5
            outside, inside = distance_transform_edt(~own), distance_transform_edt(own)
            map_ = outside / outside.max() - inside / inside.max()
            member = targets[region][n, 0].numpy()
            if source == "nearest_seed":
                # The exact transform of the project names one of several nearest voxels, so ask it and not scipy.
                nearest = nearest_of_other_side(targets["mixed_label"][n : n + 1])[0, 0].numpy()
                member = member.reshape(-1)[nearest].reshape(SHAPE)
            for i, head in enumerate(("distance_phi", "distance_psi")):
                errors[i] += ((heads[head][n, 0].detach().numpy() - map_) ** 2)[member].sum()
            number += member.sum()
        total += weight * (errors / number).sum()
    assert loss.terms["supervised_distance"].item() == pytest.approx(total, rel=1e-4)


def test_the_mask_of_the_teacher_is_the_mean_of_its_heads():
    method = objective(network(), agreement=True, teaching_heads="all")
    logits, distance = (
        torch.tensor(values).reshape(1, 1, 1, 1, -1) for values in ([3.0, 1.0, -2.0], [0.5, -0.5, -0.5])
    )
    heads = {"logits_phi": logits, "logits_psi": logits, "distance_phi": distance, "distance_psi": distance}
    mask, agreed = method._teach(heads)
    # (0.95 + 0) / 2, (0.73 + 1) / 2, (0.12 + 1) / 2
    assert mask.flatten().tolist() == [0, 1, 1] and agreed.flatten().tolist() == [False, True, False]
    mask, agreed = objective(network())._teach(heads)
    assert mask.flatten().tolist() == [1, 1, 0] and agreed is None


def test_agreement_leaves_voxels_of_the_unlabeled_crop_out():
    torch.manual_seed(0)
    views = objective(network(), agreement=True).views(*streams(), 0)
    everywhere = objective(network(), agreement=False).views(*streams(), 0)
    assert 0 < views["from_pseudo_label"].sum() < everywhere["from_pseudo_label"].sum()


def test_all_terms_of_dbisl_are_there_and_reach_every_weight():
    student = network()
    method = objective(student, pseudo_weight=0.5)
    targets = method.views(*streams(), 0)
    loss = method(student(targets["image"]), targets, 0)
    assert set(loss.terms) == set(method.TERMS) and all(value.isfinite() for value in loss.terms.values())
    loss.total.backward()
    assert all(weight.grad is not None for weight in student.parameters())
    assert set(loss.measures) == {"unanimous_share", "pseudo_foreground", "believed_share"}


def test_pseudo_labels_without_weight_change_nothing():
    student = network()
    targets = objective(student).views(*streams(), 0)
    heads = student(targets["image"])
    weightless = objective(student, pseudo_weight=0.0)(heads, targets, 0)
    other = {**targets, "mixed_label": torch.where(targets["from_label"], targets["mixed_label"], 1.0)}
    segmentation = [weightless.terms["supervised_segmentation"]]
    segmentation.append(objective(student, pseudo_weight=0.0)(heads, other, 0).terms["supervised_segmentation"])
    torch.testing.assert_close(*segmentation)
    assert objective(student, pseudo_weight=1.0)(heads, targets, 0).total > weightless.total


def test_unknown_source_is_refused():
    for option in ("source", "teaching_heads"):
        with pytest.raises(ValueError, match="seam"):
            objective(network(), **{option: "seam"})
