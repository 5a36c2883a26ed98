"""Tests of scripts/data/box.py."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.data import foreground_box


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, np.int64])
def test_box_reaches_from_the_first_to_the_last_voxel_of_several_parts(dtype):
    mask = np.zeros((7, 8, 9), dtype)
    mask[2, 3, 8] = 1
    mask[5, 3, 0] = 1 if dtype is bool else 100
    assert foreground_box(mask) == (slice(2, 6), slice(3, 4), slice(0, 9))


def test_values_below_one_and_below_zero_are_foreground():
    mask = np.zeros((4, 4, 4))
    mask[0, 0, 0], mask[1, 2, 3] = -1, 0.25
    assert foreground_box(mask) == (slice(0, 2), slice(0, 3), slice(0, 4))


def test_full_and_empty():
    assert foreground_box(np.ones((2, 3, 4))) == (slice(0, 2), slice(0, 3), slice(0, 4))
    assert foreground_box(np.zeros((2, 3, 4))) is None
