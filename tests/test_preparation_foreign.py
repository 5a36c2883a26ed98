"""Tests of data sets in the forms of nnU-Net, Auto3DSeg and BIDS: read, or refused with the command that converts."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import SHAPES, blob, las, run_process, save

from scripts.data import DataError, Datalist, LabelCoding, check_cases
from tools.preparation.bids import find_bids
from tools.preparation.datalist import convert_datalist
from tools.preparation.dataset import make_dataset

SPACING = (1.0, 1.2, 2.0)


def case(folder: Path, image: str, label: str | None, *, seed: int = 0) -> None:
    voxels, mask = blob(SHAPES[seed % len(SHAPES)], seed=seed)
    save(voxels, las(SPACING), folder / image)
    if label:
        save(mask, las(SPACING), folder / label)


def auto3dseg(folder: Path) -> Path:
    content: dict = {
        "training": [],
        "testing": [{"image": "t0.nii.gz"}, {"image": "t1.nii.gz", "label": "t1_l.nii.gz"}],
    }
    for n in range(6):
        case(folder, f"i{n}.nii.gz", f"l{n}.nii.gz", seed=n)
        content["training"].append({"image": f"i{n}.nii.gz", "label": f"l{n}.nii.gz", "fold": n % 3})
    case(folder, "t0.nii.gz", None, seed=6)
    case(folder, "t1.nii.gz", "t1_l.nii.gz", seed=7)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def run_suggested(message: str, output: Path) -> Path:
    """Runs the command that a message suggests, as it stands there, with ``output`` for DIR."""
    words = shlex.split(
        re.search(r"python -m (tools\S+ .*--output_dir DIR[^.]*)\.", message)[1].replace("DIR", str(output))
    )
    done = run_process([sys.executable, "-m", *words])
    assert done.returncode == 0, done.stderr
    return output


def used(folder: Path, *, in_channels: int = 1) -> Datalist:
    datalist = Datalist(folder)
    labeled = datalist.labeled(len(datalist.training))
    check_cases([*labeled, *datalist.validation], in_channels=in_channels, label_coding=LabelCoding(1))
    return datalist


def names(cases: list[dict]) -> list[str]:
    return [Path(entry["image"]).name for entry in cases]


def test_auto3dsegs_list_is_refused_with_the_command_that_converts_it(tmp_path):
    folder = auto3dseg(tmp_path / "in")
    with pytest.raises(DataError) as caught:
        Datalist(folder)
    datalist = used(run_suggested(str(caught.value), tmp_path / "out"))
    assert names(datalist.validation) == ["i0.nii.gz", "i3.nii.gz"]
    assert names(datalist.training) == ["i1.nii.gz", "i2.nii.gz", "i4.nii.gz", "i5.nii.gz"]
    assert names(datalist.test) == ["t0.nii.gz", "t1.nii.gz"] and "label" in datalist.test[1]


def test_labels_beyond_those_that_are_used_are_left_out_of_the_list(tmp_path):
    folder = auto3dseg(tmp_path / "in")
    path = convert_datalist(
        datalist=str(folder / "dataset.json"), output_dir=str(tmp_path / "out"), fold=1, labeled=3, data_dir=str(folder)
    )
    content = json.loads(path.read_text())
    assert [len(content[name]) for name in ("training", "unlabeled", "validation", "test")] == [3, 1, 2, 2]
    assert set(content["unlabeled"][0]) == {"image"}


@pytest.mark.parametrize("fold", [None, 3])
def test_fold_that_the_list_does_not_have_is_refused(tmp_path, fold):
    folder = auto3dseg(tmp_path / "in")
    with pytest.raises(DataError, match=r"\[0, 1, 2\]"):
        convert_datalist(datalist=str(folder / "dataset.json"), output_dir=str(tmp_path / "out"), fold=fold)


def nnunet(folder: Path, *, version: int) -> Path:
    for n in range(5):
        for channel in range(2):
            case(folder, f"imagesTr/a_{n}_000{channel}.nii.gz", f"labelsTr/a_{n}.nii.gz", seed=n)
    if version == 1:
        entries = [{"image": f"./imagesTr/a_{n}.nii.gz", "label": f"./labelsTr/a_{n}.nii.gz"} for n in range(5)]
        content = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "blob"}, "training": entries}
    else:
        content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "blob": 1}, "numTraining": 5}
        content["file_ending"] = ".nii.gz"
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_nnunets_data_set_is_refused_with_the_command_that_converts_it(tmp_path, version):
    with pytest.raises(DataError, match="nnU-Net") as caught:
        Datalist(nnunet(tmp_path / "in", version=version))
    datalist = used(run_suggested(str(caught.value), tmp_path / "out"), in_channels=2)
    for entry in datalist.training:
        stem = Path(entry["label"]).name.removesuffix(".nii.gz")
        assert [Path(path).name for path in entry["image"]] == [f"{stem}_000{channel}.nii.gz" for channel in range(2)]


def bids(folder: Path, *, sessions: int = 2, kinds: tuple[str, ...] = ("T1w",)) -> Path:
    (folder / "derivatives" / "labels").mkdir(parents=True)
    (folder / "dataset_description.json").write_text("{}")
    for subject in range(1, 6):
        for session in range(1, sessions + 1):
            stem = f"sub-{subject:02}_ses-{session}"
            place = f"sub-{subject:02}/ses-{session}/anat"
            for kind in kinds:
                label = f"derivatives/labels/{place}/{stem}_space-orig_label-lesion_mask.nii.gz"
                case(folder, f"{place}/{stem}_{kind}.nii.gz", label if subject < 5 else None, seed=subject)
    return folder


def test_bids_is_refused_with_the_command_that_converts_it_and_keeps_subjects_together(tmp_path):
    with pytest.raises(DataError, match="BIDS") as caught:
        Datalist(bids(tmp_path / "in"))
    datalist = used(run_suggested(str(caught.value), tmp_path / "out"))
    lists = {"training": datalist.training, "validation": datalist.validation, "test": datalist.test}
    subjects = {name: {Path(entry["image"]).name[:6] for entry in cases} for name, cases in lists.items()}
    assert sum(map(len, subjects.values())) == 4 == len(set.union(*subjects.values()))
    for entry in (*datalist.training, *datalist.test):
        assert Path(entry["label"]).name.startswith(Path(entry["image"]).name.removesuffix("_T1w.nii.gz"))
    assert {name[:6] for name in names(datalist.unlabeled(len(datalist.training)))} == {"sub-05"}


def test_bids_of_several_kinds_is_read_in_the_order_of_the_modalities(tmp_path):
    folder = bids(tmp_path / "in", sessions=1, kinds=("T1w", "FLAIR"))
    labels = folder / "derivatives" / "labels"
    with pytest.raises(DataError, match="5 T1w, 5 FLAIR|5 FLAIR, 5 T1w"):
        find_bids(folder, labels)
    found = find_bids(folder, labels, modalities=["FLAIR", "T1w"])
    assert [path.name for path in found[0].images] == ["sub-01_ses-1_FLAIR.nii.gz", "sub-01_ses-1_T1w.nii.gz"]
    (folder / "sub-03" / "ses-1" / "anat" / "sub-03_ses-1_FLAIR.nii.gz").unlink()
    with pytest.raises(DataError, match="sub-03_ses-1' has no image FLAIR"):
        find_bids(folder, labels, modalities=["FLAIR", "T1w"])


def test_two_labels_of_one_case_of_bids_are_told_apart_by_their_name(tmp_path):
    folder = bids(tmp_path / "in", sessions=1)
    labels = folder / "derivatives" / "labels"
    case(labels / "sub-01" / "ses-1" / "anat", "x.nii.gz", "sub-01_ses-1_label-brain_mask.nii.gz")
    with pytest.raises(DataError, match="--label_name"):
        find_bids(folder, labels)
    found = find_bids(folder, labels, label_name="label-lesion_mask")
    assert found[0].label.name == "sub-01_ses-1_space-orig_label-lesion_mask.nii.gz"


def test_label_name_of_flat_folders_is_refused(tmp_path):
    case(tmp_path, "i/a.nii.gz", "l/a.nii.gz")
    with pytest.raises(DataError, match="--label_name"):
        make_dataset(
            image_dir=str(tmp_path / "i"), label_dir=str(tmp_path / "l"), output_dir=str(tmp_path / "o"), label_name="a"
        )
