"""Tests of scripts/pictures/overlay.py: the overlay figure of one case."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from scripts.pictures import overlay, panels
from scripts.pictures.overlay import overlay_figure

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (20, 16, 6)


def case() -> dict[str, np.ndarray]:
    """A cube with a reference, two predictions that differ by a row, its distance and where the two agree."""
    reference = np.zeros(SHAPE, dtype=np.uint8)
    reference[5:13, 4:11, 1:3] = 1  # not in the middle slice, 3
    phi, psi = reference.astype(float), np.roll(reference, 2, axis=0).astype(float)
    return {
        "image": np.random.default_rng(0).normal(size=SHAPE) + 3 * reference,
        "reference": reference,
        "segmentation_phi": phi,
        "segmentation_psi": psi,
        "distance": 0.5 - phi,
        "unanimity": phi == psi,
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """The figure of ``case()``, in a folder that did not exist."""
    return overlay_figure(**case(), title="case 1", path=tmp_path_factory.mktemp("figure") / "new" / "a.png")


def pixels(path: Path) -> np.ndarray:
    """The PNG at ``path`` as (rows, columns, 3), uint8."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def without_legend(path: Path) -> np.ndarray:
    """The PNG at ``path`` without the legend, which holds every colour."""
    return pixels(path)[:-80]


def count_colour(picture: np.ndarray, colour: str) -> int:
    """Number of pixels of ``picture`` within 12 grey levels of ``colour``, "#RRGGBB"."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - wanted).max(axis=-1) <= 12).sum())


def test_figure_is_a_png_of_130_dpi_with_every_colour_of_the_legend(drawn):
    assert drawn.name == "a.png"
    with Image.open(drawn) as picture:
        assert picture.info["dpi"] == pytest.approx((130, 130), abs=0.1)
    for line in (panels.REFERENCE, overlay.PHI, overlay.PSI, overlay.ZERO, overlay.DISAGREEMENT):
        assert count_colour(without_legend(drawn), line["colour"]) > 50, line["words"]


@pytest.mark.parametrize(
    "name", ["reference", "segmentation_phi", "segmentation_psi", "distance", "unanimity", "image"]
)
def test_every_array_is_drawn(drawn, tmp_path, name):
    changed = {**case(), name: np.roll(case()[name], 3, axis=1)}
    path = overlay_figure(**changed, title="case 1", path=tmp_path / "a.png")
    assert not np.array_equal(pixels(path), pixels(drawn))


def test_the_same_arrays_give_the_same_picture(drawn, tmp_path):
    assert np.array_equal(pixels(overlay_figure(**case(), title="case 1", path=tmp_path / "a.png")), pixels(drawn))


def test_without_a_reference_the_slice_is_that_of_the_prediction_and_no_reference_is_drawn(drawn, tmp_path):
    without = without_legend(overlay_figure(**{**case(), "reference": None}, title="", path=tmp_path / "a.png"))
    assert without.std() > 10
    assert count_colour(without_legend(drawn), panels.REFERENCE["colour"]) > 100
    assert count_colour(without, panels.REFERENCE["colour"]) == 0
    assert count_colour(without, overlay.PHI["colour"]) > 50


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("with_reference", [True, False])
def test_empty_and_full_masks_are_drawn_without_a_warning(tmp_path, value, with_reference):
    arrays = {name: np.full(SHAPE, value, dtype=float) for name in case()}
    arrays |= {"reference": np.full(SHAPE, value) if with_reference else None, "unanimity": np.full(SHAPE, bool(value))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = overlay_figure(**arrays, title="empty or full", path=tmp_path / "a.png")
    assert pixels(path).std() > 10
    unanimity = without_legend(path)[:, -300:].astype(int)
    reddish = unanimity[..., 0] - unanimity[..., 1] > 40
    assert (reddish.mean() > 0.5) == (value == 0)


def test_distance_map_is_white_at_its_zero_level_which_is_drawn():
    plane = np.linspace(-0.8, 0.4, 30).reshape(6, 5)
    own = Figure()
    axes = own.subplots()
    overlay.draw_distance(own, axes, plane, aspect=1.0)
    (picture,), (contour,) = axes.images, axes.collections
    np.testing.assert_array_equal(picture.get_array(), plane.T)
    assert min(picture.to_rgba(0.0)) > 0.95
    assert list(contour.levels) == [0.0]
    assert [label.get_text() for label in own.axes[1].get_yticklabels()] == ["-1 inside", "0", "1 outside"]


def test_spacing_sets_the_aspect_of_the_panels(drawn, tmp_path):
    tall = overlay_figure(**case(), title="", path=tmp_path / "a.png", spacing=(1.0, 2.0, 5.0))
    assert pixels(tall).shape[1] == pixels(drawn).shape[1]
    assert pixels(tall).shape[0] > 1.4 * pixels(drawn).shape[0]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("distance", (20, 16, 5), r"distance has the shape \(20, 16, 5\); accepted is \(H, W, D\).*\(20, 16, 6\)"),
        ("reference", (1, 20, 16, 6), r"reference has the shape \(1, 20, 16, 6\).*without the batch and channel axes"),
        ("image", (1, 20, 16, 6), r"image has the shape \(1, 20, 16, 6\)"),
    ],
)
def test_a_wrong_shape_is_named(tmp_path, name, shape, message):
    with pytest.raises(ValueError, match=message):
        overlay_figure(**{**case(), name: np.zeros(shape)}, title="", path=tmp_path / "a.png")


def test_drawing_leaves_pyplot_and_the_backend_alone(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_overlay import case; from pathlib import Path\n"
        "from scripts.pictures.overlay import overlay_figure\n"
        f"overlay_figure(**case(), title='', path=Path({str(tmp_path / 'a.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "import matplotlib; assert matplotlib.get_backend() == 'svg', matplotlib.get_backend()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "MPLBACKEND": "svg"}, check=True)
