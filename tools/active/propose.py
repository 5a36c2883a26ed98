"""Propose: masks of the cases to label next, for a viewer to correct, with a map of where they are uncertain.

python -m scripts propose --ranking_dir outputs/ranking --output_dir outputs/proposals --count 10
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data import MetaTensor

from scripts.command import program
from scripts.data import DataError, case_name, images_of
from scripts.data.colours import class_colours
from scripts.files import replacing, write_text
from tools.active.rank import SETTINGS, TABLE
from tools.command_line import run_command
from tools.ensemble import Ensemble, proposed_label, uncertainty
from tools.preparation.packages import need_package
from tools.self_training import label_writer
from tools.tables import read_csv

RECORD = "proposals.json"


def propose(
    ranking_dir: str, output_dir: str, count: int = 10, cases: Sequence[str] | None = None, device: str | None = None
) -> str:
    """Writes proposals for the first cases of a ranking.

    output_dir gets, for every case, labels/<case>.nii.gz and labels/<case>.seg.nrrd, of which you correct one;
    proposals/<case>.nii.gz, which stays as it is, to count what was changed; and uncertainty/<case>.nii.gz, from 0,
    where all heads and members are sure of the same, to 1. All lie in the geometry of the image.

    Args:
        ranking_dir: output_dir of python -m scripts rank.
        output_dir: gets the files; it must not hold proposals already.
        count: of cases, the first in the ranking.
        cases: names of cases instead.
        device: such as cpu or cuda:0; by default a GPU if there is one.

    Raises:
        DataError: when the ranking does not have the cases, or output_dir holds proposals; after the others are
            written, when cases failed.
    """
    ranking, folder = Path(ranking_dir), Path(output_dir)
    if not (ranking / SETTINGS).is_file():
        raise DataError(f"{ranking / SETTINGS} does not exist: give the output_dir of python -m scripts rank.")
    if (folder / RECORD).exists():
        raise DataError(f"{folder} holds proposals, which may have been corrected: choose another folder.")
    need_package("nrrd", "pynrrd", folder)
    settings = json.loads((ranking / SETTINGS).read_text(encoding="utf-8"))
    listed = {row["case"]: row for row in read_csv(ranking / TABLE) if row["rank"]}
    chosen = list(cases or list(listed)[:count])
    if unknown := [name for name in chosen if name not in listed]:
        raise DataError(f"{ranking / TABLE} does not rank {unknown[0]}: give names of its column case.")
    if not chosen:
        raise DataError(f"count is {count}: give the number of cases to label next, at least 1.")
    options = {key: settings[key] for key in ("mirror", "num_labeled", "labeled_draw", "splits")}
    ensemble = Ensemble(settings["runs"], settings["dataset_dir"], device=device, **options)
    wanted = {case_name(images_of(entry)[0]): entry for entry in ensemble.unlabeled}
    if absent := [name for name in chosen if name not in wanted]:
        raise DataError(f"{absent[0]} is not an unlabeled case of {ensemble.datalist.path} any more: rank again.")
    first = ensemble.members[0].settings
    names = ensemble.coding.class_names or [f"class {value}" for value in ensemble.coding.values[1:]]
    if ensemble.coding.regions is not None:
        names = [f"value {value}" for value in ensemble.coding.values[1:]]
    entries, failed = {}, []
    kinds = {"proposals": "int16", "uncertainty": "float32"}
    save = {name: label_writer(folder / name, "", kind) for name, kind in kinds.items()}
    for case in ensemble.predict([wanted[name] for name in chosen]):
        if not case.predictions:
            failed.append(f"{case.name}: {case.reason}")
            continue
        label = proposed_label(case.ensemble, ensemble.coding, largest_component=bool(first["largest_component"]))
        meta = case.predictions[0].meta
        maps = {"proposals": label, "uncertainty": uncertainty(case.predictions)}
        saved = {name: save[name](MetaTensor(value[None], meta=meta)).meta["saved_to"] for name, value in maps.items()}
        copy = folder / "labels" / Path(saved["proposals"]).name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(Path(saved["proposals"]).read_bytes())
        written: Any = nibabel.load(copy)
        seg = folder / "labels" / f"{case.name}.seg.nrrd"
        write_segmentation(seg, label.numpy(), written.affine, dict(zip(names, ensemble.coding.values[1:])))
        paths = {**saved, "label": str(copy), "segmentation": str(seg)}
        entries[case.name] = {"image": case.entry["image"]} | {
            key: Path(path).relative_to(folder).as_posix() for key, path in paths.items()
        }
    record = {
        **settings,
        "values": dict(zip(names, ensemble.coding.values[1:])),
        "members": [member.origin for member in ensemble.members],
        "cases": entries,
    }
    if entries:
        write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False))
    if failed:
        raise DataError(f"{len(failed)} of {len(chosen)} cases failed ({failed[0]}); the others are in {folder}.")
    return (
        f"{len(entries)} proposals are in {folder / 'labels'}: correct the .seg.nrrd (3D Slicer) or the .nii.gz of "
        f"each, and take them back with {program()} accept --proposals_dir {folder} --output_dir DIR."
    )


def write_segmentation(path: Path, label: np.ndarray, affine: np.ndarray, values: dict[str, int]) -> None:
    """Writes label values as a segmentation of 3D Slicer, one layer with a named segment for each value.

    Args:
        path: ends in .seg.nrrd.
        label: (H, W, D), integers.
        affine: (4, 4), mm, to RAS.
        values: label value of every segment by its name.
    """
    import nrrd

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "kinds": ["domain"] * 3,
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "encoding": "gzip",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    whole = " ".join(f"0 {extent - 1}" for extent in label.shape)
    for number, ((name, value), colour) in enumerate(zip(values.items(), class_colours(len(values)))):
        rgb = " ".join(f"{int(colour[i : i + 2], 16) / 255:.4f}" for i in (1, 3, 5))
        fields = {"ID": f"Segment_{value}", "Name": name, "NameAutoGenerated": "0", "Color": rgb}
        fields |= {"ColorAutoGenerated": "0", "Extent": whole, "Layer": "0", "LabelValue": str(value)}
        header |= {f"Segment{number}_{key}": text for key, text in fields.items()}
    with replacing(path, ending=".seg.nrrd") as temporary:
        nrrd.write(str(temporary), label.astype(np.uint8 if label.max() < 256 else np.int16), header)


if __name__ == "__main__":
    run_command(propose)
