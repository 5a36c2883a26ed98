"""Tests of scripts/networks/discriminator.py: its size, its shapes, and what it looks at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.networks import Discriminator, VNet


def count(network: nn.Module, *, without: type[nn.Module] | tuple = ()) -> int:
    skipped = sum(p.numel() for m in network.modules() if isinstance(m, without) for p in m.parameters())
    return sum(p.numel() for p in network.parameters()) - skipped


def crops(number: int = 2, channels: int = 1, extent: int = 16, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, channels, *(extent,) * 3, generator=torch.Generator().manual_seed(seed))


def test_parameters_of_sassnet_and_dan_are_those_of_the_tables():
    sassnet, dan = Discriminator(1, 1), Discriminator(1, levels=3, per_region=True)
    assert (count(sassnet), count(dan)) == (11_019_777, 2_642_369)
    # DTC's Table 2 counts the V-Net without its normalisation layers.
    both_tasks = count(VNet(tasks=("segmentation", "distance")), without=nn.BatchNorm3d)
    assert round((count(sassnet) + both_tasks) / 1e6, 2) == 20.46
    assert round((count(dan) + count(VNet(), without=nn.BatchNorm3d)) / 1e6, 2) == 12.09


@pytest.mark.parametrize("extent", [16, 32, 48])
def test_one_decision_per_crop_or_per_region(extent):
    maps, image = crops(3, 2, extent), crops(3, 4, extent)
    assert Discriminator(2, 4, 2)(maps, image).shape == (3, 1)
    regions = Discriminator(2, base_filters=2, levels=3, per_region=True)(maps, image)
    assert regions.shape == (3, 1, *(extent // 16,) * 3)


def test_image_counts_only_where_it_has_channels():
    maps = crops()
    with_image, alone = Discriminator(1, 1, 2).eval(), Discriminator(1, 0, 2).eval()
    assert not torch.equal(with_image(maps, crops(seed=1)), with_image(maps, crops(seed=2)))
    assert torch.equal(alone(maps, crops(seed=1)), alone(maps, crops(seed=2)))
    assert not torch.equal(alone(maps, maps), alone(2 * maps, maps))


def test_decision_has_the_hand_computed_value():
    # One level of one filter that sums the 4x4x4 voxels around each second one; all weights are 1, all biases 0.
    network = Discriminator(1, 1, 1, levels=1).eval()
    for name, parameter in network.named_parameters():
        nn.init.constant_(parameter, 0 if name.endswith("bias") else 1)
    # On 4x4x4 voxels the padding leaves 3x3x3 of the 4x4x4 inside the crop: 27 times 1 from the map, -3 from the image.
    maps, image = torch.ones(1, 1, 4, 4, 4), torch.full((1, 1, 4, 4, 4), -3.0)
    assert network(maps, image).item() == pytest.approx(0.2 * 27 * (1 - 3))  # the LeakyReLU's slope
    assert network(maps, torch.zeros_like(image)).item() == pytest.approx(27)
