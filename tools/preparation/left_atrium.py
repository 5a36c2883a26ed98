"""Left atrium: prepares the 2018 Atrial Segmentation Challenge's scans as the benchmark has them, or whole.

python -m tools.preparation.left_atrium --input_dir "2018_UTAH_MICCAI/Training Set" --output_dir data/left_atrium
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.data import DataError
from tools.command_line import run_command

from .benchmark import available, case_list, check_choice, check_output, cut, padded_box, write_benchmark
from .volumes import load_volume

IMAGE, LABEL = "lgemri.nrrd", "laendo.nrrd"
PATCH = (112, 112)
MARGIN = (10, 20)  # drawn from 10 ... 19


def make_left_atrium(*, input_dir: str, output_dir: str, crop: str = "reference", seed: int = 0) -> Path:
    """Writes the 80 training scans in canonical order and the 20 test scans.

    Intensities are z-scored over the whole scan and label 255 becomes 1, as in the benchmark. Its crop in x and y is
    the box around the reference, widened to 112 and by 10 to 19 voxels on each side, drawn at random; its draws are
    not known, so those here, from ``seed`` and the case's name, are others.

    Args:
        input_dir: folder with one folder per scan, with lgemri.nrrd and laendo.nrrd, at any depth.
        output_dir: made if missing.
        crop: "reference", the benchmark's, which tells the network where the atrium is, in test scans too; or "none",
            the whole scan.
        seed: of the margins.

    Returns:
        Path of dataset.json.

    Raises:
        DataError: when no scan is found, or one cannot be used.
    """
    check_choice("crop", crop, ("reference", "none"))
    root, source = check_output(output_dir), Path(str(input_dir))
    folders = {path.parent.name: path.parent for path in source.rglob(IMAGE)}
    lists = available(case_list("left_atrium"), folders, source)

    def prepare(name: str):
        return prepare_scan(folders[name], crop_to_reference=crop == "reference", seed=seed)

    header = {
        "name": "LeftAtrium2018",
        "description": f"2018 Atrial Segmentation Challenge, canonical order; crop: {crop}",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "left atrium"},
    }
    return write_benchmark(root, lists, prepare, header)


def prepare_scan(
    folder: Path, *, crop_to_reference: bool, seed: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Image [(H, W, D)], float32, z-scored; label (H, W, D), uint8, {0, 1}; affine (4, 4), mm, of one scan's folder.

    The label is taken voxel by voxel, whatever its header says: the benchmark pairs the two arrays, too.

    Raises:
        DataError: when the label is missing, has another shape or other values than 0 and 255, or is empty.
    """
    if not (folder / LABEL).is_file():
        raise DataError(f"{folder} has {IMAGE} and no {LABEL}: unpack the challenge's training set again.")
    image, affine = load_volume(folder / IMAGE)
    label, _ = load_volume(folder / LABEL)
    if label.shape != image.shape:
        raise DataError(f"{folder / LABEL} has shape {label.shape} and its image {image.shape}: they must be equal.")
    if set(np.unique(label)) != {0, 255}:
        raise DataError(f"{folder / LABEL} has the values {np.unique(label)[:5].tolist()}; expected are 0 and 255.")
    label = (label == 255).astype(np.uint8)
    image = image.astype(np.float32)
    image = (image - image.mean()) / image.std()
    if crop_to_reference:
        # A stream of its own for every scan: the margins do not depend on which others are there.
        rng = np.random.default_rng([seed, *folder.name.encode()])
        before, after = rng.integers(*MARGIN, size=(2, 2))
        box = padded_box(label, minimum=(*PATCH, 0), before=(*before, 0), after=(*after, 0))
        box = (*box[:2], slice(0, image.shape[2]))
        image, cropped = cut(image, affine, box)
        label, affine = label[box], cropped
    return [image], label, affine


if __name__ == "__main__":
    run_command(make_left_atrium)
