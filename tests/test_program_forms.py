"""Tests of the forms of the losses and networks that the methods' public programs have, by hand and by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import merged
from scipy.special import expit, softmax
from torch import nn

from scripts.data import LabelCoding
from scripts.methods import EntropyMinimizationObjective, MCNetObjective
from scripts.methods.losses import cross_entropy, dice_loss, segmentation_loss
from scripts.networks import DualTaskVNet

SHAPE = (3, 4, 5)


def halves_of_doubt(share: float, voxels: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of 1/2 with gradient and a label of which ``share`` is foreground, (1, 1, voxels, 1, 1)."""
    label = torch.zeros(1, 1, voxels, 1, 1)
    label[:, :, : round(share * voxels)] = 1
    return torch.full_like(label, 0.5).requires_grad_(), label


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float32)


def binary_dice(p: np.ndarray, y: np.ndarray, *, squares: bool) -> float:
    size = (p * p).sum() + (y * y).sum() if squares else p.sum() + y.sum()
    return 1 - (2 * (p * y).sum() + 1e-5) / (size + 1e-5)


def test_dice_with_squares_is_less_and_steeper_where_training_starts():
    """By hand, a tenth of the voxels in the object: 1 - 0.1 / 0.35 and 1 - 0.1 / 0.6."""
    losses, gradients = [], []
    for squares in (True, False):
        p, label = halves_of_doubt(0.1)
        loss = dice_loss(p, label, squares=squares)
        (gradient,) = torch.autograd.grad(loss, p)
        losses.append(loss.item())
        gradients.append(gradient[0, 0, 0, 0, 0].item())
    assert losses == pytest.approx([1 - 0.1 / 0.35, 1 - 0.1 / 0.6], rel=1e-5)
    assert losses[0] / losses[1] == pytest.approx(0.86, abs=0.005)
    # Of a voxel of the object: -2 / S + 2 I / S^2, twice that last part with squares.
    expected = [(-2 / 0.35 + 0.1 / 0.35**2) / 100, (-2 / 0.6 + 0.1 / 0.6**2) / 100]
    assert gradients == pytest.approx(expected, rel=1e-4)
    assert gradients[0] / gradients[1] == pytest.approx(1.6, abs=0.01)


def test_dice_of_the_classes_is_larger_than_that_with_the_background():
    """By hand, a fifth of the voxels in the object: 1 - 0.2 / 0.45 and 1 - 0.8 / 1.05."""
    p, label = halves_of_doubt(0.2)
    logits = torch.zeros(1, 2, 100, 1, 1)
    without, whole = (
        2 * (segmentation_loss(logits, label, background=b) - 0.5 * cross_entropy(logits, label)) for b in (False, True)
    )
    foreground, background = 1 - 0.2 / 0.45, 1 - 0.8 / 1.05
    assert without.item() == pytest.approx(foreground, rel=1e-4)
    assert whole.item() == pytest.approx((foreground + background) / 2, rel=1e-4)
    assert without.item() / whole.item() == pytest.approx(1.4, abs=0.01)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("partial", [False, True])
def test_dice_with_background_is_the_mean_over_all_outcomes(kind, partial):
    coding = LabelCoding(2)
    values = np.random.default_rng(0).integers(0, 3, (2, 1, *SHAPE))
    target = coding.encode(torch.tensor(values, dtype=torch.float32))
    logits = noise(1, 2, 3 if kind == "softmax" else 2, *SHAPE)
    known = torch.tensor(np.random.default_rng(2).random((2, 2, *SHAPE)) > 0.3) if partial else None
    loss = segmentation_loss(logits, target, known, background=True) - 0.5 * cross_entropy(logits, target, known)

    y, z = target.double().numpy(), logits.double().numpy()
    counted = np.ones_like(y, bool) if known is None else known.numpy()
    if kind == "softmax":
        p = softmax(z, axis=1)
        outcomes = [(p[:, 0], 1 - y.sum(1), counted.all(1))]
        outcomes += [(p[:, c + 1], y[:, c], counted[:, c]) for c in range(2)]
    else:
        p = expit(z)
        outcomes = [(p[:, c], y[:, c], counted[:, c]) for c in range(2)]
        outcomes += [(1 - p[:, c], 1 - y[:, c], counted[:, c]) for c in range(2)]
    expected = np.mean([binary_dice(p[where], y[where], squares=True) for p, y, where in outcomes])
    assert 2 * loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["entropy_minimization", "mean_teacher", "ua_mt", "cct", "urpc", "dan"])
def test_config_id_gives_the_supervision_of_ssl4mis(method):
    parser = merged("configs/train.json", f"configs/methods/{method}.json")
    parser.update({"base_filters": 2, "objective#dice_background": True, "device": torch.device("cpu")})
    objective = parser.get_parsed_content("objective")
    network = parser.get_parsed_content("network").train()
    image, label = noise(3, 4, 1, 16, 16, 16), (noise(4, 2, 1, 16, 16, 16) > 1).float()
    torch.manual_seed(0)
    heads = network(image)
    loss = objective(heads, {"image": image, "label": label}, 0)
    logits = [head[:2] for name, head in heads.items() if name.startswith("logits")]
    expected = sum(segmentation_loss(head, label, background=True) for head in logits) / len(logits)
    assert loss.terms["supervised_segmentation"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_the_id_the_supervision_is_of_the_classes_only():
    objective = EntropyMinimizationObjective(LabelCoding(1))
    logits, label = noise(5, 2, 2, *SHAPE), (noise(6, 2, 1, *SHAPE) > 1).float()
    loss = objective({"logits": logits}, {"image": logits, "label": label}, 0)
    assert loss.terms["supervised_segmentation"].item() == pytest.approx(segmentation_loss(logits, label).item())


def test_mc_net_without_squares_is_its_programs_dice_of_each_decoder():
    heads = {"logits_phi": noise(7, 3, 1, *SHAPE), "logits_psi": noise(8, 3, 1, *SHAPE)}
    label = (noise(9, 2, 1, *SHAPE) > 1).float()
    objective = MCNetObjective(LabelCoding(1), {"mutual_consistency": 0}, dice_squares=False)
    expected = [binary_dice(expit(head[:2].double().numpy()), label.numpy(), squares=False) for head in heads.values()]
    assert objective(heads, {"label": label}, 0).total.item() == pytest.approx(sum(expected), rel=1e-5)


def test_interpolation_of_decoder_psi_aligns_corners_on_request():
    aligned, default = DualTaskVNet(base_filters=2, align_corners=True), DualTaskVNet(base_filters=2)
    resizes = [m for m in aligned.decoder_psi.modules() if isinstance(m, nn.Upsample)]
    assert len(resizes) == 4
    corners = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1, 1)
    # Corner to corner in three equal steps; by default the quarters between the voxels' centres.
    assert resizes[0](corners)[0, 0, :, 0, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    resize, *_ = (m for m in default.decoder_psi.modules() if isinstance(m, nn.Upsample))
    assert resize(corners)[0, 0, :, 0, 0].tolist() == pytest.approx([0, 0.25, 0.75, 1])


def test_discriminator_of_dan_in_three_dimensions_sees_the_image_and_decides_about_the_crop():
    parser = merged("configs/train.json", "configs/methods/dan.json")
    parser.update({"base_filters": 2, "device": torch.device("cpu")})
    parser.update({"discriminator#image_channels": 1, "discriminator#levels": 4, "discriminator#per_region": False})
    discriminator = parser.get_parsed_content("discriminator").eval()
    maps, image = torch.rand(2, 1, 32, 32, 32), noise(10, 2, 1, 32, 32, 32)
    decision = discriminator(maps, image)
    assert decision.shape == (2, 1)
    assert not torch.equal(decision, discriminator(maps, image + 1))
