"""Demonstration data: writes a small synthetic "left atrium" MR data set in the Medical Decathlon form.

Volume ``index`` depends on (seed, index) alone, see :mod:`tools.demo.phantom`. The roles own separate ranges of
indices (``FIRST_INDEX``), so more labeled or more unlabeled scans never change the validation and the test volumes.

    python -m tools.demo.dataset --output_dir demo_data
"""

import json
from pathlib import Path

from scripts.errors import UserError
from tools.command_line import run_command
from tools.preparation.volumes import save_volume

from .phantom import simulate_volume

FIRST_INDEX = {"training": 0, "validation": 10_000, "test": 20_000, "new": 30_000}
MOST = {"num_labeled": 5_000, "num_unlabeled": 5_000, "seed": 2**32 - 1}  # the first two share "training"
STAMP = "demo.json"
VERSION = 1  # raise it whenever the pictures change, so that no older data set passes for a current one


def write_cases(
    root: Path, *, role: str, count: int, seed: int, first: int = 0, images: str = "imagesTr", labels: str | None = None
) -> list[dict[str, str]]:
    """Writes ``count`` volumes of ``role`` from the ``first`` on; without a folder for ``labels`` no label is written.

    Returns:
        Entries of dataset.json, paths relative to ``root``: {"image", "label"}, or {"image"} where ``labels`` is None.
    """
    entries = []
    for number in range(first, first + count):
        image, label, affine = simulate_volume(seed=seed, index=FIRST_INDEX[role] + number)
        name = f"{role}_{number:03d}.nii.gz"
        entries.append({"image": f"{images}/{name}"})
        save_volume(image, affine, root / images / name)
        if labels is not None:
            entries[-1]["label"] = f"{labels}/{name}"
            save_volume(label, affine, root / labels / name)
    return entries


def is_finished(root: Path, arguments: dict[str, int]) -> bool:
    """Whether ``root`` holds the finished data set of ``arguments``; one that was interrupted may be redone.

    Raises:
        FileExistsError: when ``root`` holds any other data set. Writing over it could leave labels of unlabeled scans.
    """
    stamp = json.loads((root / STAMP).read_text()) if (root / STAMP).is_file() else {}
    if stamp.get("arguments") == arguments:
        return bool(stamp["finished"])
    if stamp or any((root / name).exists() for name in ("dataset.json", "imagesTr", "labelsTr", "imagesTs")):
        raise FileExistsError(
            f"output_dir {str(root)!r} already holds another data set (made with {stamp.get('arguments')}, "
            f"asked for {arguments}): delete that folder, or pass a new one as --output_dir."
        )
    return False


def make_dataset(
    *,
    output_dir: str,
    num_labeled: int = 4,
    num_unlabeled: int = 16,
    num_validation: int = 2,
    num_test: int = 6,
    seed: int = 0,
) -> Path:
    """Writes the data set, about 0.3 s per volume; leaves a finished one with the same arguments as it is.

    Scans for training are numbered through, the labeled ones first: 4 + 16 and 8 + 12 are the same twenty images. One
    more scan in new_volumes/ is listed nowhere: it is there to be segmented; new_volumes_reference/ has the answer.

    Args:
        output_dir: folder to write to, made if missing.
        num_labeled: scans for training with a label, at least 1.
        num_unlabeled: scans for training of which no label is written.
        num_validation: scans with a label to choose settings on.
        num_test: scans with a label to report on, in imagesTs/ and labelsTs/.
        seed: the series of volumes, from 0 to 2^32 - 1.

    Returns:
        Path of dataset.json, with the lists ``training`` (labeled), ``unlabeled``, ``validation`` and ``test``.

    Raises:
        UserError: when a count or the seed is not an integer in its range.
        FileExistsError: when ``output_dir`` holds a data set made with other arguments, or by someone else.
    """
    arguments = {
        "num_labeled": num_labeled,
        "num_unlabeled": num_unlabeled,
        "num_validation": num_validation,
        "num_test": num_test,
        "seed": seed,
        "version": VERSION,
    }
    for name, value in arguments.items():
        least, most = int(name == "num_labeled"), MOST.get(name, 10_000)
        if type(value) is not int or not least <= value <= most:
            raise UserError(f"{name} is {value!r}; it must be a whole number from {least} to {most}.")
    root = Path(str(output_dir))  # the command line hands over a folder called 2024 as a number
    datalist = root / "dataset.json"
    if is_finished(root, arguments):
        print(f"{root} already holds this data set: nothing was written.")
        return datalist
    root.mkdir(parents=True, exist_ok=True)
    (root / STAMP).write_text(json.dumps({"arguments": arguments, "finished": False}, indent=2), encoding="utf-8")

    lists = {
        "training": write_cases(root, role="training", count=num_labeled, seed=seed, labels="labelsTr"),
        "unlabeled": write_cases(root, role="training", count=num_unlabeled, seed=seed, first=num_labeled),
        "validation": write_cases(root, role="validation", count=num_validation, seed=seed, labels="labelsTr"),
        "test": write_cases(root, role="test", count=num_test, seed=seed, images="imagesTs", labels="labelsTs"),
    }
    write_cases(root, role="new", count=1, seed=seed, images="new_volumes", labels="new_volumes_reference")
    header = {
        "name": "SyntheticLeftAtrium",
        "description": "Simulated MR of a thorax in miniature, left atrium labeled; for demonstration only",
        "reference": "python -m tools.demo.dataset",
        "licence": "CC0 1.0",
        "release": str(VERSION),
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "left atrium (synthetic)"},
        "numTraining": num_labeled,
        "numTest": num_test,
    }
    datalist.write_text(json.dumps({**header, **lists}, indent=2), encoding="utf-8")
    (root / STAMP).write_text(json.dumps({"arguments": arguments, "finished": True}, indent=2), encoding="utf-8")
    return datalist


if __name__ == "__main__":
    run_command(make_dataset)
