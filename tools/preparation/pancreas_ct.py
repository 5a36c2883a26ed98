"""Pancreas-CT: prepares the archive's DICOM series and NIfTI labels as the benchmark has them, or whole.

python -m tools.preparation.pancreas_ct --input_dir Pancreas-CT --output_dir data/pancreas_ct
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, Spacing
from tqdm import tqdm

from scripts.data import DataError
from tools.command_line import run_command

from .benchmark import available, case_list, check_choice, check_output, cut, padded_box, write_benchmark
from .dicom import dicom_folders
from .orientation import FLIPS, contrasts, flip, to_axes_of
from .volumes import check_label, load_volume

WINDOW = (-125, 275)  # HU
SPACING = 1.0  # mm
MARGIN = 25  # voxels of SPACING
PATCH = 96
# The orientation is decided on this many cases: one alone may have little contrast.
SAMPLED_CASES = 10
# An orientation other than the headers' is only believed when its contrast is this many times that of the headers.
CLEARLY_BETTER = 1.5
CROPS = ("reference", "reference_box", "none")
AXES = ("first", "second", "third")


def make_pancreas_ct(*, input_dir: str, output_dir: str, crop: str = "reference") -> Path:
    """Writes the 62 training scans in the benchmark's order and the 20 test scans, at 1 mm, in HU of [-125, 275].

    The labels lie on the voxels of the series, but whether the two headers agree on the direction of the axes cannot
    be relied on. So the label is first brought into the image's axes by the headers, and then all eight mirror images
    are compared by how well the label's surface follows the edges of the image. The answer is printed, and applied to
    all cases.

    Args:
        input_dir: folder of the download: below it one DICOM series per case in a folder ``PANCREAS_0001``, and the
            labels ``label0001.nii.gz``, both at any depth.
        output_dir: made if missing.
        crop: "reference", that of the program whose lists these are: in the axial plane the box around the reference,
            widened to 96 and then by 25 voxels, and all slices; "reference_box", another public program's: the box
            around the reference and 25 voxels, at least 96, along all three axes. Both tell the network where the
            pancreas is, in test scans too. "none": the whole scan.

    Returns:
        Path of dataset.json.

    Raises:
        DataError: when no case is found, or one cannot be used.
    """
    check_choice("crop", crop, CROPS)
    root, source = check_output(output_dir), Path(str(input_dir))
    series, labels = find_series(source), find_labels(source)
    lists = available(case_list("pancreas_ct"), set(series) & set(labels), source)
    names = [name for members in lists.values() for name in members]
    mirrored = find_mirroring([(series[name], labels[name]) for name in names[:SAMPLED_CASES]])

    def prepare(name: str):
        return prepare_scan(series[name], labels[name], mirrored=mirrored, crop=crop)

    header = {
        "name": "PancreasCT",
        "description": f"NIH Pancreas-CT, order of the benchmark, 1 mm; crop: {crop}",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas"},
    }
    return write_benchmark(root, lists, prepare, header)


def find_series(source: Path) -> dict[str, Path]:
    """The folder of every case's DICOM series by its four digits.

    Raises:
        DataError: when a case has several series.
    """
    found: dict[str, Path] = {}
    for folder in dicom_folders(source):
        number = next((m[1] for part in reversed(folder.parts) if (m := re.search(r"PANCREAS_(\d{4})", part))), None)
        if number is None:
            continue
        if number in found:
            raise DataError(f"case {number} has two DICOM series, {found[number]} and {folder}: keep one.")
        found[number] = folder
    return found


def find_labels(source: Path) -> dict[str, Path]:
    """The label file of every case by its four digits."""
    files = sorted([*source.rglob("label*.nii.gz"), *source.rglob("label*.nii")])
    return {m[1]: path for path in files if (m := re.match(r"label(\d{4})\.nii", path.name))}


def load_case(series: Path, label_path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (H, W, D) in HU, label (H, W, D), uint8, in the image's axes by the headers, and the image's affine.

    Raises:
        DataError: when the two have different shapes.
    """
    image, affine = load_volume(series)
    label, label_affine = load_volume(label_path)
    label, _ = to_axes_of(check_label(label, label_path), label_affine, affine)
    if label.shape != image.shape:
        raise DataError(
            f"{label_path} has shape {label.shape} in the axes of {series}, which has {image.shape}: "
            "they must be equal. Slices may be missing: download the series again."
        )
    return image, (label > 0).astype(np.uint8), affine


def find_mirroring(cases: list[tuple[Path, Path]]) -> tuple[bool, ...]:
    """The axes along which the labels have to be mirrored after the headers were followed, decided on ``cases``."""
    table = []
    for series, label_path in tqdm(cases, desc="orientation"):
        image, label, _ = load_case(series, label_path)
        table.append(contrasts(np.clip(image, *WINDOW), label))
    mean = np.mean(table, axis=0)
    best = int(mean.argmax())
    if mean[best] < CLEARLY_BETTER * mean[0]:
        best = 0
    agreeing = sum(int(row.argmax() == best) for row in table)
    mirrored = FLIPS[best]
    axes = " and ".join(f"the {AXES[axis]}" for axis in range(3) if mirrored[axis])
    action = f"labels are mirrored along {axes} axis of the image" if axes else "the headers are followed"
    print(
        f"orientation: {action} (contrast {mean[best]:.2f}, by the headers {mean[0]:.2f}, of the other mirror images "
        f"at most {np.delete(mean, [0, best]).max():.2f}; largest in {agreeing} of {len(cases)} cases)."
    )
    return mirrored


def prepare_scan(
    series: Path, label_path: Path, *, mirrored: tuple[bool, ...], crop: str
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Image [(H, W, D)], float32, HU clipped to ``WINDOW``; label (H, W, D), uint8; affine (4, 4), mm; 1 mm, RAS.

    Raises:
        DataError: when the label is empty.
    """
    image, label, affine = load_case(series, label_path)
    if not label.any():
        raise DataError(f"{label_path} is empty: download it again.")
    label = flip(label, mirrored)
    image, label, affine = resample(np.clip(image, *WINDOW).astype(np.float32), label, affine)
    if crop != "none":
        axes = (1, 1, 0) if crop == "reference" else (1, 1, 1)
        margin = tuple(MARGIN * axis for axis in axes)
        minimum = tuple(PATCH * axis for axis in axes)
        box = padded_box(label, minimum=minimum, before=margin, after=margin, margin_first=crop == "reference_box")
        if crop == "reference":
            box = (*box[:2], slice(0, image.shape[2]))
        image, cropped = cut(image, affine, box)
        label, affine = label[box], cropped
    return [image], label, affine


def resample(image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (H, W, D), linearly, and label (H, W, D), nearest neighbour, on a grid of ``SPACING`` mm in RAS order."""
    volumes = []
    for array, mode in ((image, "bilinear"), (label, "nearest")):
        tensor = MetaTensor(
            torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32))[None], affine=torch.as_tensor(affine)
        )
        steps = Compose([Orientation("RAS", labels=None), Spacing((SPACING,) * 3, mode=mode, padding_mode="border")])
        volumes.append(steps(tensor))
    return volumes[0][0].numpy(), volumes[1][0].numpy().astype(np.uint8), volumes[0].affine.numpy()


if __name__ == "__main__":
    run_command(make_pancreas_ct)
