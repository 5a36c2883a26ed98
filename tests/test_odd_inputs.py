"""Tests of input that is legal and unusual: masks lie on the object, in the geometry that nibabel gives the input.

The network finds what is brighter than the mean, and the object is half of the volume and no mirror image of itself, so
that every flip, shift or scaling that is applied once too often or too seldom shows in the voxels.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import las, oblique, save

from scripts.data import NiftiReader

SHAPE = (20, 18, 17)


def half(shape: tuple[int, ...]) -> np.ndarray:
    """Mask (H, W, D), bool, below a slanted plane."""
    grid = np.meshgrid(*[(np.arange(n) + 0.5) / n for n in shape], indexing="ij")
    return grid[0] + 0.6 * grid[1] + 0.3 * grid[2] < 0.95


def bright(shape: tuple[int, ...] = SHAPE, dtype: type = np.int16) -> np.ndarray:
    return (20 + 80 * half(shape)).astype(dtype)


def turned(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


def with_forms(path: Path, *, sform, qform, pixdim=None) -> None:
    """An image with these affines (4, 4), or without where one is None; ``pixdim`` is what the header says."""
    image = nibabel.Nifti1Image(bright(), None)
    image.set_qform(qform, code=0 if qform is None else 1)
    image.set_sform(sform, code=0 if sform is None else 2)
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    nibabel.save(image, path)


def scaled(path: Path, *, slope: float, intercept: float, dtype: type) -> None:
    """An image whose stored numbers are scaled by its header: dark and bright are exchanged by a negative slope."""
    stored = np.where(half(SHAPE), 80, 20) if slope > 0 else np.where(half(SHAPE), 20, 80)
    image = nibabel.Nifti1Image(stored.astype(dtype), las((1.0, 1.2, 2.0)))
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(path)
    written = nibabel.load(path)
    assert (written.dataobj.slope, written.dataobj.inter) != (1, 0)
    if slope < 0:
        assert written.get_fdata()[half(SHAPE)].min() > written.get_fdata()[~half(SHAPE)].max()


def of_shape(shape: tuple[int, ...], affine: np.ndarray | None = None):
    affine = las((1.0, 1.2, 2.0)) if affine is None else affine
    return lambda path: save(bright(shape[:3]).reshape(shape), affine, path)


def of_type(dtype: type, endian: str = "<"):
    def make(path: Path) -> None:
        header = nibabel.Nifti1Header(endianness=endian)
        header.set_data_dtype(dtype)
        nibabel.save(nibabel.Nifti1Image(bright(dtype=dtype), las((1.0, 1.2, 2.0)), header), path)

    return make


def nifti2(path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(bright(), las((1.0, 1.2, 2.0))), path)


SHEARED = oblique((1.0, 1.2, 2.0)) @ np.array([[1, 0.1, 0, 0], [0, 1, 0.05, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
ODD = {
    "flipped-all": of_shape(SHAPE, np.diag([-1.0, -1.2, -2.0, 1])),
    "flipped-one": of_shape(SHAPE, np.diag([1.0, -1.2, 2.0, 1])),
    "permuted": of_shape(SHAPE, las((2.0, 1.0, 1.5))[[2, 0, 1, 3]]),
    "oblique": of_shape(SHAPE, oblique((1.0, 1.2, 2.0))),
    "sheared": of_shape(SHAPE, SHEARED),
    "forty-five-degrees": of_shape(SHAPE, turned(45)),
    "far-away": of_shape(SHAPE, las((1, 1, 1), origin=(5000, -5000, 9000))),
    "anisotropic": of_shape(SHAPE, las((0.4, 0.4, 6.0))),
    "microscopic": of_shape(SHAPE, las((0.01, 0.01, 0.02))),
    "one-time-point": of_shape((*SHAPE, 1)),
    "smaller-than-the-patch": of_shape((5, 7, 9)),
    "one-slice": of_shape((20, 18, 1)),
    "one-row": of_shape((1, 18, 17)),
    "larger-in-one-axis": of_shape((9, 40, 11)),
    "qform-alone": lambda path: with_forms(path, sform=None, qform=turned(30) @ np.diag([1.0, 1.2, 2.0, 1])),
    "neither-form": lambda path: with_forms(path, sform=None, qform=None, pixdim=(1, 1.2, 2)),
    "forms-turned": lambda path: with_forms(path, sform=turned(90), qform=np.eye(4)),
    "forms-shifted": lambda path: with_forms(path, sform=las((1, 1, 1)), qform=np.diag([-1.0, 1, 1, 1])),
    "sform-of-other-voxels": lambda path: with_forms(path, sform=las((1, 2, 3)), qform=np.eye(4), pixdim=(1, 1, 1)),
    "sform-without-qform": lambda path: with_forms(path, sform=las((1, 2, 3)), qform=None, pixdim=(1, 1, 1)),
    "pixdim-zero": lambda path: with_forms(path, sform=las((1, 2, 3)), qform=None, pixdim=(0, 0, 0)),
    **{np.dtype(kind).name: of_type(kind) for kind in (np.uint8, np.int8, np.uint16, np.int32, np.uint32)},
    **{np.dtype(kind).name: of_type(kind) for kind in (np.int64, np.uint64, np.float32, np.float64)},
    "big-endian": of_type(np.int16, ">"),
    "nifti-2": nifti2,
    "scaled": lambda path: scaled(path, slope=0.5, intercept=-1024, dtype=np.int16),
    "scaled-bytes": lambda path: scaled(path, slope=3.7, intercept=12, dtype=np.uint8),
    "scaled-negatively": lambda path: scaled(path, slope=-2.0, intercept=7, dtype=np.int16),
}


def infer(workflow, folder: Path, output: Path, **overrides) -> None:
    bundle = workflow(
        "configs/inference.json",
        workflow_type="inference",
        input_dir=str(folder),
        output_dir=str(output),
        patch_size=[16, 16, 16],
        stride=[16, 16, 16],
        network_def={"_target_": "torch.nn.Sigmoid"},
        device="$torch.device('cpu')",
        **{"handlers#0#_disabled_": True, **overrides},
    )
    bundle.initialize()
    bundle.run()


@pytest.mark.parametrize("spacing, least_dice", [(None, 1.0), ([1.0, 1.0, 1.0], 0.9)], ids=["as-it-is", "resampled"])
def test_mask_lies_on_the_object_in_the_geometry_of_the_input(workflow, tmp_path, spacing, least_dice):
    # At 1 mm these would be a voxel or a handful.
    names = [name for name in ODD if spacing is None or name not in ("microscopic", "one-slice", "one-row")]
    (tmp_path / "new").mkdir()
    for name in names:
        ODD[name](tmp_path / "new" / f"{name}.nii.gz")
    infer(workflow, tmp_path / "new", tmp_path / "masks", spacing=spacing)
    wrong = {}
    for name in names:
        image = nibabel.load(tmp_path / "new" / f"{name}.nii.gz")
        mask = nibabel.load(tmp_path / "masks" / f"{name}_seg.nii.gz")
        assert mask.shape == image.shape[:3], name
        np.testing.assert_allclose(mask.affine, image.affine, rtol=1e-5, atol=1e-4, err_msg=name)
        found, expected = np.asarray(mask.dataobj) == 1, half(image.shape[:3])
        dice = 2 * (found & expected).sum() / (found.sum() + expected.sum())
        if not dice >= least_dice:
            wrong[name] = dice
    assert wrong == {}


@pytest.mark.parametrize("stem, suffix", [("A", ".NII"), ("with blank ü", ".nii"), ("a.b.c", ".nii.gz")])
def test_mask_is_named_after_its_input(workflow, tmp_path, stem, suffix):
    Path(save(bright(), las((1, 1, 1)), tmp_path / "new" / f"a{suffix.lower()}")).rename(
        tmp_path / "new" / f"{stem}{suffix}"
    )
    infer(workflow, tmp_path / "new", tmp_path / "masks", spacing=None)
    assert [path.name for path in (tmp_path / "masks").glob("*.nii*")] == [f"{stem}_seg.nii.gz"]


@pytest.mark.parametrize("name", ["sform-of-other-voxels", "pixdim-zero", "forms-turned", "big-endian", "scaled"])
def test_reader_gives_the_affine_and_the_voxels_of_nibabel(tmp_path, name):
    ODD[name](tmp_path / "a.nii.gz")
    expected = nibabel.load(tmp_path / "a.nii.gz")
    reader = NiftiReader()
    voxels, meta = reader.get_data(reader.read(tmp_path / "a.nii.gz"))
    assert np.array_equal(meta["affine"], expected.affine)
    assert np.array_equal(voxels, expected.get_fdata())
