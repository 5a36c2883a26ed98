"""Tests of the largest component (scripts/inference/decoding.py): hand-made parts, and a flood fill in plain Python."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data import LabelCoding
from scripts.inference import LargestComponentd
from scripts.inference.decoding import smaller_components

STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]


def flood_fill(foreground: np.ndarray) -> list[set[tuple[int, ...]]]:
    """The components of a mask as sets of indices, by walking from voxel to voxel."""
    left = {tuple(index) for index in np.argwhere(foreground).tolist()}
    found = []
    while left:
        part, border = set(), [left.pop()]
        while border:
            voxel = border.pop()
            part.add(voxel)
            for step in STEPS:
                neighbour = tuple(a + b for a, b in zip(voxel, step))
                if neighbour in left:
                    left.remove(neighbour)
                    border.append(neighbour)
        found.append(part)
    return found


@pytest.mark.parametrize("seed, density", [(0, 0.05), (1, 0.08), (2, 0.12), (3, 0.5)])
def test_what_stays_is_the_largest_component_of_a_flood_fill(seed, density):
    foreground = np.random.default_rng(seed).random((14, 11, 12)) < density
    parts = sorted(flood_fill(foreground), key=len)
    assert len(parts) == 1 or len(parts[-1]) > len(parts[-2])  # else the largest is not unique
    kept = foreground & ~smaller_components(foreground)
    assert {tuple(index) for index in np.argwhere(kept).tolist()} == parts[-1]
    assert not (smaller_components(foreground) & ~foreground).any()


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks_stay(value):
    assert not smaller_components(np.full((3, 4, 5), value)).any()


def test_voxels_that_share_a_corner_are_connected():
    foreground = np.zeros((4, 4, 4), dtype=bool)
    foreground[0, 0, 0] = foreground[1, 1, 1] = foreground[3, 3, 3] = True
    assert np.argwhere(smaller_components(foreground)).tolist() == [[3, 3, 3]]


def test_every_class_of_exclusive_labels_keeps_its_own_largest_part():
    mask = MetaTensor(torch.zeros(1, 1, 1, 12, dtype=torch.uint8), meta={"filename_or_obj": "a.nii.gz"})
    mask[0, 0, 0] = torch.tensor([1, 1, 2, 0, 2, 2, 2, 0, 1, 0, 1, 2])
    result = LargestComponentd("pred", LabelCoding(2))({"pred": mask, "other": 3})
    assert result["pred"].flatten().tolist() == [1, 1, 0, 0, 2, 2, 2, 0, 0, 0, 0, 0]
    assert result["other"] == 3 and result["pred"].dtype == torch.uint8
    assert result["pred"].meta["filename_or_obj"] == "a.nii.gz"
    assert mask.flatten().tolist()[2] == 2  # the input is left alone


def test_overlapping_regions_keep_the_largest_part_each():
    regions = LabelCoding(2, regions=[[1, 2], [2]])
    mask = torch.tensor([[1, 1, 1, 0, 1, 1], [1, 0, 0, 0, 1, 1]], dtype=torch.uint8)[:, None, None]
    result = LargestComponentd("pred", regions)({"pred": mask})["pred"]
    assert result[:, 0, 0].tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]]
