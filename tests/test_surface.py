"""Tests of tools/reports/surface.py: where things appear, how large, in which colour, and what covers what."""

from __future__ import annotations

import numpy as np
import pytest

from tools.reports.surface import bounding_box, render_surfaces, view_axes

ORANGE, BLUE = np.array([0xE6, 0x9F, 0x00]) / 255, np.array([0x56, 0xB4, 0xE9]) / 255
FRONT = {"azimuth": 0.0, "elevation": 0.0, "pixels": 60}


def cube(*corners, shape=(20, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*limits) for limits in corners)] = True
    return mask


def seen(picture: np.ndarray) -> np.ndarray:
    """Rows and columns, (rows, columns), bool, where there is a surface."""
    return (picture != 1).any(axis=-1)


def test_seen_from_the_front_the_patients_right_is_on_the_left_and_superior_is_up():
    np.testing.assert_allclose(view_axes(0, 0), [[-1, 0, 0], [0, 0, 1], [0, -1, 0]], atol=1e-12)
    # To the patient's left of the middle and below it.
    box = ([0, 0, 0], [19, 19, 19])
    rows, columns = np.nonzero(seen(render_surfaces(cube((2, 6), (8, 12), (2, 6))[None], (1, 1, 1), box=box, **FRONT)))
    assert columns.min() > 30 and rows.min() > 30


def test_axes_of_any_view_are_perpendicular_and_of_length_one():
    axes = view_axes(37.0, 23.0)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert axes[1, 2] > 0  # superior is up
    assert axes[2, 0] > 0 and axes[2, 2] < 0  # the viewer looks to the right and down


def test_extent_of_a_box_is_that_of_its_millimetres():
    # 8 voxels of 2 mm across and 16 of 0.5 mm up: twice as wide as high.
    mask = cube((6, 14), (6, 14), (2, 18))
    visible = seen(render_surfaces(mask[None], (2.0, 1.0, 0.5), **FRONT))
    width, height = visible.any(axis=0).sum(), visible.any(axis=1).sum()
    assert width / height == pytest.approx(2.0, rel=0.1)


def test_the_nearer_mask_covers_the_farther_whatever_their_order():
    near, far = cube((5, 15), (15, 18), (5, 15)), cube((5, 15), (2, 5), (5, 15))  # anterior is nearer
    for masks, colour in (([near, far], ORANGE), ([far, near], BLUE)):
        centre = render_surfaces(np.array(masks), (1, 1, 1), **FRONT)[30, 30]
        np.testing.assert_allclose(centre / centre.max(), colour / colour.max(), atol=1e-6)


def test_a_sphere_is_lit_from_above_left_and_round():
    grid = np.indices((30, 30, 30)) - 14.5
    sphere = (grid**2).sum(axis=0) < 12**2
    picture = render_surfaces(sphere[None], (1, 1, 1), azimuth=0, elevation=0, pixels=90)
    brightness = picture[..., 0]
    assert brightness[30, 30] > brightness[45, 45] > brightness[60, 60] > 0
    radius = np.sqrt(seen(picture).sum() / np.pi)
    rows, columns = np.nonzero(seen(picture))
    assert np.hypot(rows - 44.5, columns - 44.5).max() < radius + 2


@pytest.mark.parametrize("shape", [(1, 5, 5, 5), (0, 5, 5, 5)])
def test_nothing_to_see_is_a_white_picture(shape):
    assert bounding_box(np.zeros(shape, dtype=bool)) is None
    assert (render_surfaces(np.zeros(shape, dtype=bool), (1, 1, 1), pixels=10) == 1).all()


def test_one_voxel_and_a_full_volume_are_seen():
    one = cube((3, 4), (3, 4), (3, 4), shape=(7, 7, 7))
    for mask in (one, np.ones((7, 7, 7), dtype=bool)):
        assert seen(render_surfaces(mask[None], (1, 1, 1), pixels=40)).mean() > 0.02
