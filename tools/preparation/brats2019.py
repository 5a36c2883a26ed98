"""BraTS 2019: prepares the challenge's training set: FLAIR and whole tumour, or four modalities and three regions.

python -m tools.preparation.brats2019 --input_dir MICCAI_BraTS_2019_Data_Training --output_dir data/brats2019
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.data import DataError
from scripts.data.folder import NIFTI_SUFFIXES
from tools.command_line import run_command

from .benchmark import available, bounding_box, case_list, check_choice, check_output, cut, write_benchmark
from .volumes import check_label, load_volume

MODALITIES = ("flair", "t1", "t1ce", "t2")
PERCENTILE = 99.9
LABELS = (0, 1, 2, 4)  # background, necrosis and non-enhancing tumour, oedema, enhancing tumour


def make_brats2019(
    *, input_dir: str, output_dir: str, task: str = "whole_tumour", crop: str = "brain", intensity: str = "brain"
) -> Path:
    """Writes the 250 training cases in the benchmark's order, the 25 for validation and the 60 for test.

    By default every modality is clipped at the 99.9th percentile of its brain. The z-score over the brain is left to
    training and inference (``normalize_nonzero`` in the overlays), so that outside stays 0.

    Args:
        input_dir: folder of the download, with HGG and LGG below it, one folder per case.
        output_dir: made if missing.
        task: "whole_tumour": only FLAIR, every label above 0 becomes 1, as in the papers; "regions": all four
            modalities, labels 1, 2 and 4 as they are, for configs/data/brats2019_multiclass.json.
        crop: "brain", the papers': the box of the voxels that are not 0 in any modality used; or "none". Neither uses
            the reference.
        intensity: "brain", see above; or "benchmark", that of the public data set: clipped at the 99.9th percentile of
            all voxels of the box, zeros included, then the mean of the brain is subtracted from every voxel and divided
            by its standard deviation, so that outside is the same negative number everywhere in a case. For
            configs/data/brats2019_benchmark.json behind brats2019.json.

    Returns:
        Path of dataset.json.

    Raises:
        DataError: when no case is found, or one cannot be used.
    """
    check_choice("task", task, ("whole_tumour", "regions"))
    check_choice("crop", crop, ("brain", "none"))
    check_choice("intensity", intensity, ("brain", "benchmark"))
    root, source = check_output(output_dir), Path(str(input_dir))
    folders = {path.name.split("_flair.nii")[0]: path.parent for path in source.rglob("*_flair.nii*")}
    lists = available(case_list("brats2019"), folders, source)
    modalities = MODALITIES if task == "regions" else MODALITIES[:1]

    def prepare(name: str):
        images, label, affine = prepare_case(
            folders[name],
            name,
            modalities=modalities,
            task=task,
            crop_to_brain=crop == "brain",
            clip=intensity == "brain",
        )
        return [scale_as_published(image) for image in images] if intensity == "benchmark" else images, label, affine

    regions = {"1": "necrosis and non-enhancing tumour", "2": "oedema", "4": "enhancing tumour"}
    header = {
        "name": "BraTS2019",
        "description": f"BraTS 2019, order of the benchmark; task: {task}, crop: {crop}, intensity: {intensity}",
        "modality": {str(number): modality for number, modality in enumerate(modalities)},
        "labels": {"0": "background", **(regions if task == "regions" else {"1": "whole tumour"})},
    }
    return write_benchmark(root, lists, prepare, header)


def prepare_case(
    folder: Path, name: str, *, modalities: tuple[str, ...], task: str, crop_to_brain: bool, clip: bool = True
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """One image (H, W, D), float32, per modality, the label (H, W, D), uint8, and the affine (4, 4), mm, of a case.

    Raises:
        DataError: when a file is missing or not on the grid of the others, or the label has unknown values.
    """
    paths = [find_file(folder, f"{name}_{modality}") for modality in (*modalities, "seg")]
    volumes = [load_volume(path) for path in paths]
    affine = volumes[0][1]
    for path, (array, own_affine) in zip(paths, volumes):
        if array.shape != volumes[0][0].shape or not np.allclose(own_affine, affine, atol=1e-3):
            raise DataError(f"{path} is not on the grid of {paths[0]}: download the case again.")
    label = check_label(volumes.pop()[0], paths[-1])
    unknown = sorted(set(np.unique(label).tolist()) - set(LABELS))
    if unknown:
        raise DataError(f"{paths[-1]} has label values {unknown}; those of BraTS are {LABELS}.")
    if task == "whole_tumour":
        label = (label > 0).astype(np.uint8)
    images = [array.astype(np.float32) for array, _ in volumes]
    images = [clip_at_percentile(image) for image in images] if clip else images
    if crop_to_brain:
        brain = np.any([image != 0 for image in images], axis=0)
        box = tuple(slice(int(a), int(b)) for a, b in zip(*bounding_box(brain)))
        cropped = [cut(array, affine, box) for array in (*images, label)]
        *images, label = (array for array, _ in cropped)
        affine = cropped[0][1]
    return images, label, affine


def find_file(folder: Path, name: str) -> Path:
    """``folder/name`` with either suffix of NIfTI.

    Raises:
        DataError: when there is none.
    """
    for suffix in NIFTI_SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise DataError(f"{folder / name}.nii.gz does not exist: unpack the challenge's training set again.")


def clip_at_percentile(image: np.ndarray) -> np.ndarray:
    """``image`` (H, W, D) clipped from above at the percentile ``PERCENTILE`` of its voxels that are not 0."""
    brain = image[image != 0]
    if len(brain) == 0:
        return image
    return np.minimum(image, np.percentile(brain, PERCENTILE).astype(image.dtype))


def scale_as_published(image: np.ndarray) -> np.ndarray:
    """``image`` (H, W, D), clipped at the percentile of all its voxels and z-scored by those above 0; float32."""
    clipped = np.minimum(image, np.percentile(image, PERCENTILE).astype(image.dtype))
    brain = clipped[clipped > 0].astype(np.float64)
    if len(brain) == 0:
        return image
    return ((clipped - brain.mean()) / max(brain.std(), 1e-9)).astype(np.float32)


if __name__ == "__main__":
    run_command(make_brats2019)
