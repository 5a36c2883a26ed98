"""Self-training: pseudo-labels of the unlabeled cases from trained runs, in a new dataset.json.

python -m tools.self_training --runs "['outputs/a','outputs/b']" --dataset_dir /data/mine --output_dir outputs/pseudo
"""

import csv
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from scripts.data import DataError, LabelCoding, images_of
from scripts.data.datalist import LISTS, PSEUDO
from scripts.files import write_text
from scripts.inference import NiftiWriter, contained_name
from scripts.methods.mixing import largest_components
from tools.command_line import run_command
from tools.ensemble import KINDS, Ensemble, Prediction, agreements, label_of
from tools.preparation.dataset import relative

COLUMNS = ("case", "image", "score", *KINDS, "unknown_share", "kept", "reason")
IGNORE_VALUE = 255


def pseudo_label(
    predictions: Sequence[Prediction], ensemble: torch.Tensor, coding: LabelCoding, *, largest_component: bool
) -> torch.Tensor:
    """Label values (1, H, W, D), int16: ``ignore_value`` where not all heads of all members vote alike.

    Args:
        predictions: of the members.
        ensemble: (C, H, W, D), their mean probability.
        coding: with an ``ignore_value``; it also stands where regions overlap as for no label value.
        largest_component: the other components of each class become background, and known.
    """
    votes = torch.cat([votes for one in predictions for votes in (one.segmentations > 0.5, one.distances < 0)])
    unknown = (votes.any(0) & ~votes.all(0)).any(0)
    mask = coding.harden(ensemble[None])
    if largest_component:
        whole, mask = mask, largest_components(mask)
        unknown &= (whole == mask)[0].all(0)
    label = label_of(mask, coding, ignored := int(coding.ignore_value or IGNORE_VALUE))
    return label.masked_fill(unknown, ignored)[None]


def rebased(case: Any, source: Path, folder: Path) -> dict[str, Any]:
    """An entry of ``source``/dataset.json with paths relative to ``folder``."""
    case = dict(case) if isinstance(case, dict) else {"image": case}
    for key in ("image", "label"):
        if path := case.get(key):
            case[key] = relative([source / one for one in (path if isinstance(path, list) else [path])], folder)
    return case


def label_writer(folder: Path, postfix: str, dtype: str = "int16") -> SaveImage:
    """Saves a map (1, H, W, D) as ``folder/<case>_<postfix>.nii.gz``, in the geometry of its image."""
    options: dict[str, Any] = {"writer": NiftiWriter, "output_name_formatter": contained_name, "print_log": False}
    options |= {"output_dtype": dtype, "resample": False, "separate_folder": False, "savepath_in_metadict": True}
    return SaveImage(folder, postfix, **options)


def main(
    runs: str | Sequence[str],
    dataset_dir: str,
    output_dir: str,
    threshold: float = 0.8,
    mirror: bool = False,
    largest_component: bool = False,
    ignore_value: int | None = None,
    num_labeled: int | None = None,
    labeled_draw: int | None = None,
    splits: Mapping[str, Sequence[int]] | None = None,
    device: str | None = None,
) -> None:
    """Labels the unlabeled cases of a data set by an ensemble, and lists the good ones in a new dataset.json.

    Args:
        runs: one or several trainings: output_dir, ckpt_dir or model.pt.
        dataset_dir: of the data set whose unlabeled cases get pseudo-labels.
        output_dir: gets dataset.json, pseudo_labels.csv and the folder labels.
        threshold: score, 0 to 1, the least of the agreements, under which a case is left out.
        mirror: averages over the mirror images that each training showed.
        largest_component: keeps the largest part of every class alone.
        ignore_value: label value of voxels on which not all agree; 255, or what the runs had.
        num_labeled: as in the training; like the next two, by default what run.json says.
        labeled_draw: as in the training.
        splits: as in the training.
        device: such as cpu or cuda:0; by default a GPU if there is one.
    """
    folder, source = Path(output_dir), Path(dataset_dir)
    if folder.resolve() == source.resolve():
        raise DataError(f"output_dir {folder} is the folder of the data set: choose another, to keep it as it is.")
    given: dict[str, Any] = {"num_labeled": num_labeled, "labeled_draw": labeled_draw, "splits": splits}
    given["ignore_value"] = ignore_value
    ensemble = Ensemble(runs, source, mirror=mirror, device=device, **given)
    ignored = ensemble.coding.ignore_value or IGNORE_VALUE
    coding = LabelCoding(ensemble.coding.num_classes, ensemble.coding.regions, ignore_value=ignored)
    cases, datalist = ensemble.unlabeled, ensemble.datalist
    save = label_writer(folder / "labels", "pseudo")

    origin = {"date": datetime.now(UTC).date().isoformat(), "members": [member.origin for member in ensemble.members]}
    kept: list[dict[str, Any]] = []
    failed = 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").unlink(missing_ok=True)
    with (folder / "pseudo_labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for case in ensemble.predict(cases):
            row: dict[str, Any] = {"case": case.name, "image": images_of(case.entry)[0], "kept": False}
            if not case.predictions:
                failed += 1
                table.writerow({**row, "reason": case.reason})
                continue
            found = agreements(case.predictions, case.ensemble)
            values = [value for value in found.values() if value is not None]
            if not values:
                raise DataError(
                    "one network with one head has nothing to agree with: give several runs, such as seeds."
                )
            label = pseudo_label(case.predictions, case.ensemble, coding, largest_component=largest_component)
            row |= {**found, "score": min(values), "unknown_share": float((label == ignored).float().mean())}
            if min(values) < threshold:
                table.writerow({**row, "reason": f"score under {threshold}"})
                continue
            saved = save(MetaTensor(label, meta=case.predictions[0].meta))
            files = {"image": images_of(case.entry), "label": saved.meta["saved_to"]}
            kept.append({**rebased(files, Path(), folder), "pseudo_label": {**origin, "score": min(values)}})
            table.writerow({**row, "kept": True})
            file.flush()
    if not kept:
        raise DataError(
            f"none of {len(cases)} cases got a pseudo-label; {file.name} says why: lower threshold, or train on."
        )
    content = json.loads(datalist.path.read_text(encoding="utf-8"))
    content |= {key: [rebased(case, source, folder) for case in content[key]] for key in LISTS if key in content}
    content[PSEUDO] = kept
    write_text(folder / "dataset.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    print(
        f"{len(kept)} of {len(cases)} unlabeled cases have pseudo-labels, in {folder / 'dataset.json'}; {file.name} "
        "has the scores of all."
    )
    if failed:
        raise DataError(f"{failed} of {len(cases)} cases failed; the others are complete. {file.name} has the reasons.")


if __name__ == "__main__":
    run_command(main)
