"""Accept: corrected proposals become labeled cases of a new dataset.json; what was changed is counted.

python -m scripts accept --proposals_dir outputs/proposals --output_dir outputs/twenty
"""

import json
import math
import shlex
from pathlib import Path
from statistics import fmean
from typing import Any

import nibabel
import numpy as np
import torch

from scripts.command import program
from scripts.data import DataError, Datalist
from scripts.data.datalist import LISTS, PSEUDO
from scripts.files import replacing, write_text
from tools.active.propose import RECORD
from tools.command_line import run_command
from tools.preparation.segments import merged
from tools.reports.pseudo_labels import overlap_scores
from tools.self_training import rebased
from tools.tables import write_csv

COLUMNS = ("case", "class", "source", "dice", "voxels_before", "voxels_after", "added", "removed", "accepted", "reason")
UNCHANGED = ("skip", "accept")


def accept(proposals_dir: str, output_dir: str, unchanged: str = "skip") -> str:
    """Takes corrected proposals into a copy of the data set's list, in which they are labeled.

    The new list has the labeled cases first, then the corrected ones, then all others; test and validation stay.

    Args:
        proposals_dir: output_dir of python -m scripts propose.
        output_dir: gets dataset.json, corrections.csv and the folder labels; not the folder of the data set.
        unchanged: of a proposal that nobody changed: skip, or accept for those that are right as they are.

    Returns:
        What was changed, and the command that trains on.

    Raises:
        DataError: when no case was accepted; after the others are written, when a corrected file is wrong.
    """
    proposals, folder = Path(proposals_dir), Path(output_dir)
    if unchanged not in UNCHANGED:
        raise DataError(f"unchanged is {unchanged!r}; it is skip, or accept for proposals that are right as they are.")
    if not (proposals / RECORD).is_file():
        raise DataError(f"{proposals / RECORD} does not exist: give the output_dir of python -m scripts propose.")
    record = json.loads((proposals / RECORD).read_text(encoding="utf-8"))
    source = Path(record["dataset_dir"])
    if folder.resolve() == source.resolve() or (folder / "dataset.json").exists():
        raise DataError(f"output_dir {folder} holds a data set: choose another, to keep it as it is.")
    datalist = Datalist(source, splits=record["splits"], labeled_draw=record["labeled_draw"])
    rows: list[dict[str, Any]] = []
    accepted: dict[str, Path] = {}
    for name, entry in record["cases"].items():
        try:
            before, after, origin = corrected(proposals, entry, record["values"])
        except DataError as error:
            rows.append({"case": name, "accepted": False, "reason": str(error)})
            continue
        kept = origin != "unchanged" or unchanged == "accept"
        reason = "" if kept else "nobody changed it"
        rows += [
            {"case": name, "source": origin, "accepted": kept, "reason": reason, **row}
            for row in changes(before, after, record["values"])
        ]
        if kept:
            image: Any = nibabel.load(proposals / entry["proposals"])
            header = image.header.copy()
            header.set_data_dtype(np.int16)
            accepted[name] = folder / "labels" / Path(entry["proposals"]).name
            with replacing(accepted[name], ending=".nii.gz") as temporary:
                nibabel.save(nibabel.Nifti1Image(after.astype(np.int16), None, header), temporary)
    with replacing(folder / "corrections.csv") as temporary:
        write_csv(temporary, COLUMNS, rows)
    wrong = {row["case"]: row["reason"] for row in rows if "class" not in row}
    if not accepted:
        raise DataError(
            f"none of {len(record['cases'])} proposals was accepted; {folder / 'corrections.csv'} says why: correct "
            "them, or give --unchanged accept if they are right as they are."
        )
    number = write_list(datalist, record, accepted, folder)
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(record['cases'])} proposals were refused ({next(iter(wrong.values()))}); the others "
            f"are in {folder}."
        )
    found = [row["dice"] for row in rows if row["accepted"] and not math.isnan(row["dice"])]
    changed = sum(row["added"] + row["removed"] for row in rows if row["accepted"])
    left = sum(row["reason"] != "" for row in {row["case"]: row for row in rows}.values())
    return (
        f"{len(accepted)} corrected cases, {changed} voxels changed, mean Dice against the proposals "
        f"{fmean(found) if found else math.nan:.3f}; {left} left out. {folder} has {number} labeled cases.\nNext: "
        f"{next_command(Path(record['runs'][0]), record['members'][0]['weights'], folder, number)}"
    )


def next_command(run: Path, weights: str, dataset_dir: Path, number: int) -> str:
    """The command that trains on from a run's ``weights``, by its settings where there is its config.json."""
    places = run / "config.json", Path(weights).parents[1] / "config.json"
    configs = [path for path in places if path.is_file()]
    old = (configs or places[1:])[0].parent
    output = old.with_name(f"{old.name}_{number}")
    given = {"dataset_dir": dataset_dir, "output_dir": output, "num_labeled": number, "labeled_draw": 0}
    given |= {"splits": "null", "initial_weights": weights}
    if configs:
        given = {"config_file": configs[0], **given}
        if "output_dir" not in str(json.loads(configs[0].read_text(encoding="utf-8")).get("ckpt_dir")):
            given["ckpt_dir"] = output / "models"
    options = shlex.join(str(word) for name, value in given.items() for word in (f"--{name}", value))
    missing = "" if configs else f"\n(with overlays and settings as before: {old} has no config.json that tells them)"
    return f"{program()} train {options}{missing}"


def corrected(folder: Path, entry: dict[str, Any], values: dict[str, int]) -> tuple[np.ndarray, np.ndarray, str]:
    """The proposal and what became of it, (H, W, D), integers, and which file says so: nifti, segmentation, unchanged.

    Raises:
        DataError: when a file cannot be read, lies on another grid or has other values, or when both were changed.
    """
    proposal: Any = nibabel.load(folder / entry["proposals"])
    before = np.asarray(proposal.dataobj).astype(np.int64)
    changed: dict[str, np.ndarray] = {}
    if (path := folder / entry["label"]).is_file():
        try:
            image: Any = nibabel.load(path)
            after = np.asarray(image.dataobj)
        except Exception as error:  # a damaged file raises any of several types
            raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}): export it again.") from error
        if after.shape != before.shape or not np.allclose(image.affine, proposal.affine, atol=1e-3):
            raise DataError(f"{path} is not on the grid of its image any more: export it in the image's geometry.")
        changed["nifti"] = after
    if (path := folder / entry["segmentation"]).is_file():
        lower = {name.lower(): value for name, value in values.items()}
        try:
            changed["segmentation"] = merged(path, lower, before.shape, proposal.affine)[0].astype(np.int64)
        except KeyError as error:
            known = ", ".join(values)
            raise DataError(
                f"{path} has a segment called {error}: the classes are {known}; rename or remove it."
            ) from error
    if not changed:
        raise DataError(f"{folder / entry['label']} and the .seg.nrrd beside it are gone: put one of them back.")
    for path_of, after in changed.items():
        if unknown := sorted(set(np.unique(after).tolist()) - {0, *values.values()}):
            known = ", ".join(map(str, values.values()))
            raise DataError(f"the {path_of} of {entry['label']} has the value {unknown[0]}; known are 0, {known}.")
    different = {name: after for name, after in changed.items() if (after != before).any()}
    if len(different) == 2 and (different["nifti"] != different["segmentation"]).any():
        raise DataError(f"{folder / entry['label']} and the .seg.nrrd beside it were both changed: remove one of them.")
    name = next(iter(different), "unchanged")
    return before, different.get(name, before).astype(np.int64), name


def changes(before: np.ndarray, after: np.ndarray, values: dict[str, int]) -> list[dict[str, Any]]:
    """What changed in each class: Dice of both, voxels before and after, added and removed."""
    rows = []
    for name, value in values.items():
        old, new = before == value, after == value
        dice = overlap_scores(torch.from_numpy(old), torch.from_numpy(new))["dice"]
        rows.append(
            {"class": name, "dice": dice if math.isnan(dice) else round(dice, 4)}
            | {"voxels_before": int(old.sum()), "voxels_after": int(new.sum())}
            | {"added": int((new & ~old).sum()), "removed": int((old & ~new).sum())}
        )
    return rows


def write_list(datalist: Datalist, record: dict[str, Any], accepted: dict[str, Path], folder: Path) -> int:
    """Writes the new dataset.json and returns how many labeled cases it has."""
    images = {json.dumps(record["cases"][name]["image"]): path for name, path in accepted.items()}

    def taken(case: dict[str, Any]) -> Path | None:
        return images.get(json.dumps(case["image"]))

    labeled = datalist.training[: record["num_labeled"]]
    others = datalist.training[record["num_labeled"] :]
    content = json.loads(datalist.path.read_text(encoding="utf-8"))
    former = {name: content.pop(name, []) for name in (*LISTS, PSEUDO)}
    unlabeled = datalist.unlabeled(record["num_labeled"])[len(others) :]
    new = [{"image": case["image"], "label": str(taken(case))} for case in [*others, *unlabeled] if taken(case)]
    lists = {
        "training": [*labeled, *new, *(case for case in others if not taken(case))],
        "unlabeled": [case for case in unlabeled if not taken(case)],
        "validation": datalist.validation,
        "test": datalist.test,
    }
    content |= {name: [rebased(case, Path(), folder) for case in cases] for name, cases in lists.items()}
    content["numTraining"] = len(labeled) + len(new)
    if former[PSEUDO]:  # a case with a true label gives way by itself
        content[PSEUDO] = [rebased(case, datalist.folder, folder) for case in former[PSEUDO]]
    write_text(folder / "dataset.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return len(labeled) + len(new)


if __name__ == "__main__":
    run_command(accept)
