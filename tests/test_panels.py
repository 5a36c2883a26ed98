"""Tests of scripts/pictures: which slice is shown, contours, PNG files, and every head on one slice."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from scripts.errors import UserError
from scripts.pictures import panels
from scripts.pictures.crops import DISAGREEMENT, PREDICTION, ZERO, Crop, crops_figure, draw_distance
from scripts.pictures.panels import REFERENCE, grey_window, new_figure, png, slice_to_show, write_png

ROOT = Path(__file__).resolve().parents[1]


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


# --- crops ---


def volume(**changes) -> Crop:
    """A cube with a reference, two predictions that differ by a row, its distance and where the two agree."""
    reference = np.zeros((20, 16, 6), dtype=bool)
    reference[5:13, 4:11, 1:3] = True  # not in the middle slice, 3
    phi, psi = reference.astype(float), np.roll(reference, 2, axis=0).astype(float)
    arrays = {"reference": reference, "probabilities": {"phi": phi, "psi": psi}, "distances": {"map": 0.5 - phi}}
    arrays |= {"unanimous": phi == psi, "pseudo_label": (phi + psi) / 2}
    image = np.random.default_rng(0).normal(size=reference.shape) + 3 * reference
    return Crop(title="case", **{"image": image, **arrays, **changes})


def pixels(crop: Crop) -> np.ndarray:
    """The figure of a crop as (rows, columns, 3), uint8, without the words below."""
    with Image.open(io.BytesIO(png(crops_figure([crop], title="")))) as picture:
        return np.asarray(picture.convert("RGB"))[:-40]


def count(picture: np.ndarray, colour: str) -> int:
    """Number of pixels within 12 grey levels of ``colour``, "#RRGGBB"."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - wanted).max(axis=-1) <= 12).sum())


def test_every_line_and_area_is_drawn_and_none_of_a_reference_that_is_not_there():
    drawn, without = pixels(volume()), pixels(volume(reference=None))
    for line in (REFERENCE, PREDICTION, ZERO, DISAGREEMENT):
        assert count(drawn, line["colour"]) > 50, line["words"]
    assert count(without, REFERENCE["colour"]) == 0 and count(without, PREDICTION["colour"]) > 50


def test_voxels_set_the_aspect_of_the_panels():
    tall, square = pixels(volume(aspect=2.0)), pixels(volume())
    assert tall.shape[1] == square.shape[1] and tall.shape[0] > 1.4 * square.shape[0]


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks_are_drawn_without_a_warning(value):
    full = np.full((20, 16, 6), float(value))
    crop = volume(image=full, reference=full > 0, probabilities={"a": full}, distances={"b": full}, unanimous=full > 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (count(pixels(crop), DISAGREEMENT["colour"]) > 50) is False and pixels(crop).std() > 10


@pytest.mark.parametrize("name, shape", [("pseudo_label", (20, 16, 5)), ("reference", (1, 20, 16, 6))])
def test_a_wrong_shape_is_named(name, shape):
    with pytest.raises(UserError, match=rf"{name} has the shape \({', '.join(map(str, shape))}\).*\(20, 16, 6\)"):
        crops_figure([volume(**{name: np.zeros(shape)})], title="")


def test_distance_map_is_white_at_its_zero_level_which_is_drawn():
    plane, own = np.linspace(-0.8, 0.4, 30).reshape(6, 5), Figure()
    axes = own.subplots()
    draw_distance(own, axes, plane, aspect=1.0, title="distance")
    (picture,), (contour,) = axes.images, axes.collections
    np.testing.assert_array_equal(picture.get_array(), plane.T)
    assert min(picture.to_rgba(0.0)) > 0.95 and list(contour.levels) == [0.0]


def test_drawing_leaves_pyplot_and_the_backend_alone():
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_panels import pixels, volume; pixels(volume())\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "import matplotlib; assert matplotlib.get_backend() == 'svg', matplotlib.get_backend()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "MPLBACKEND": "svg"}, check=True)
