"""Tests of scripts/pictures/panels.py: which slice is shown, contours, and PNG files."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from scripts.pictures import panels
from scripts.pictures.panels import grey_window, new_figure, png, slice_to_show, write_png


def test_contour_is_drawn_where_the_level_is_crossed_and_not_in_an_empty_plane():
    axes = Figure().subplots()
    panels.draw_contour(axes, np.zeros((4, 5)), level=0.5, line=panels.REFERENCE)
    assert len(axes.collections) == 0
    panels.draw_contour(axes, np.eye(4, 5), level=0.5, line=panels.REFERENCE)
    assert len(axes.collections) == 1


def test_slice_to_show_has_the_largest_area_or_is_the_middle_one():
    mask = np.zeros((4, 4, 5), dtype=bool)
    assert slice_to_show(mask) == 2
    mask[0, 0, :] = True
    mask[1:3, 1:3, 4] = True
    assert slice_to_show(mask) == 4


def test_window_leaves_out_the_brightest_and_darkest_half_percent():
    plane = np.arange(1001.0).reshape(7, 143)
    assert grey_window(plane) == (5.0, 995.0)


def test_figure_is_written_as_a_png_of_its_size_into_a_new_folder(tmp_path):
    figure = new_figure(2.0, 1.0)
    path = write_png(figure, tmp_path / "new" / "a.png")
    assert path.read_bytes() == png(figure)
    with Image.open(io.BytesIO(png(figure))) as picture:
        assert (picture.format, picture.size) == ("PNG", (260, 130))
