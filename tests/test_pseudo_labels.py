"""Tests of tools/reports/pseudo_labels.py: hand-computed scores, a network whose votes are known, a real run."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import LABELED, SMALL, delete_unlabeled_labels, merged, run_bundle, save, small

from scripts.data import DataError
from scripts.networks import Network, VNet
from tools.reports.pseudo_labels import COLUMNS, SCORES, class_row, main, overlap_scores, spread


class Votes(Network):
    """Four heads that vote for foreground where the image exceeds a level each; the first level is a weight."""

    def __init__(self, levels: list[float]) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(()))
        self.others = levels

    def forward_heads(self, x):
        phi, psi, distance_phi, distance_psi = (x - level for level in [self.first, *self.others])
        heads = {"logits_phi": 10 * phi, "logits_psi": 10 * psi}
        return {**heads, "distance_phi": (-distance_phi).tanh(), "distance_psi": (-distance_psi).tanh()}


class TwoClasses(Votes):
    """The same votes for two classes."""

    def forward_heads(self, x):
        return {name: torch.cat([head, head - 1], dim=1) for name, head in super().forward_heads(x).items()}


LEVELS = (0.9, 0.3, 1.2, -0.4)


def write_run(folder: Path, dataset: Path, *, files=("configs/train.json",), **changes) -> Path:
    """A finished run of the network above: its config and its weights."""
    config = merged(*files).get()
    config |= {**SMALL, "class_names": ["blob"], "dataset_dir": str(dataset), "ckpt_dir": str(folder / "models")}
    config["network_def"] = {"_target_": "test_pseudo_labels.Votes", "levels": list(LEVELS[1:])}
    config["network"] = "@network_def"
    for name, value in changes.items():
        *parents, last = name.split("__")
        part = config
        for parent in parents:
            part = part[parent]
        part[last] = value
    (folder / "models").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"starts": [], "config": config}, default=str))
    torch.save({"first": torch.tensor(LEVELS[0])}, folder / "models" / "model.pt")
    return folder


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "pseudo_labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def expected_row(dataset: Path, number: int, *, segmentations_alone: bool = False) -> dict[str, float]:
    """The row of a training case, computed with numpy from its files."""
    image = np.asarray(nibabel.load(dataset / f"images/training_{number}.nii.gz").dataobj, dtype=np.float64)
    label = np.asarray(nibabel.load(dataset / f"labels/training_{number}.nii.gz").dataobj)
    reference, known = label == 1, label != 255
    z = (image - image.mean()) / image.std()
    votes = np.stack([z > level for level in LEVELS[: 2 if segmentations_alone else 4]])
    agreed = votes.all(0) | ~votes.any(0)
    probability = sum(1 / (1 + np.exp(-10 * (z - level))) for level in LEVELS[:2]) / 2
    prediction = probability > 0.5
    row = {"unanimous_share": agreed[known].mean(), "unanimous_foreground_share": agreed[reference].mean()}
    for ending, where in (("", known), ("_unanimous", agreed & known)):
        hits = (prediction & reference & where).sum()
        predicted, true = (prediction & where).sum(), (reference & where).sum()
        row[f"dice{ending}"] = 2 * hits / (predicted + true)
        row[f"recall{ending}"], row[f"precision{ending}"] = hits / true, hits / predicted
    return row


# --- scores ---


def test_scores_of_a_mask_by_hand():
    prediction = torch.tensor([1, 1, 1, 0, 0, 0]).bool()
    reference = torch.tensor([1, 0, 0, 1, 0, 0]).bool()
    assert overlap_scores(prediction, reference) == {"dice": 2 / 5, "recall": 1 / 2, "precision": 1 / 3}


def test_scores_without_anything_to_divide_by_are_nan():
    none, some = torch.zeros(4).bool(), torch.tensor([True, False, False, False])
    empty_prediction, empty_reference = overlap_scores(none, some), overlap_scores(some, none)
    assert (empty_prediction["dice"], empty_prediction["recall"]) == (0, 0) and math.isnan(
        empty_prediction["precision"]
    )
    assert (empty_reference["dice"], empty_reference["precision"]) == (0, 0) and math.isnan(empty_reference["recall"])
    assert all(math.isnan(value) for value in overlap_scores(none, none).values())


def test_the_mask_leaves_out_what_was_doubted():
    pseudo_label = torch.tensor([0.9, 0.9, 0.6, 0.4, 0.1, 0.5])
    unanimous = torch.tensor([1, 1, 0, 0, 1, 1]).bool()
    reference = torch.tensor([1, 0, 0, 1, 1, 0]).bool()
    row = class_row(pseudo_label, unanimous, reference)
    # All: predicted 0, 1, 2 of the true 0, 3, 4. Within the mask: predicted 0, 1 of the true 0, 4.
    assert (row["dice"], row["recall"], row["precision"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert [row[f"{s}_unanimous"] for s in ("dice", "recall", "precision")] == [0.5, 0.5, 0.5]
    assert (row["unanimous_share"], row["unanimous_foreground_share"]) == pytest.approx((4 / 6, 2 / 3))


def test_unknown_voxels_count_for_nothing():
    pseudo_label = torch.tensor([0.9, 0.9, 0.6, 0.4, 0.1, 0.5])
    unanimous = torch.tensor([1, 1, 0, 0, 1, 1]).bool()
    reference = torch.tensor([1, 0, 0, 1, 0, 0]).bool()
    known = torch.tensor([1, 0, 1, 1, 1, 0]).bool()
    row = class_row(pseudo_label, unanimous, reference, known)
    assert row == class_row(pseudo_label[known], unanimous[known], reference[known])
    # Voxels 0, 2, 3, 4 count: predicted 0, 2 of the true 0, 3; within the mask: predicted 0 of the true 0.
    assert [row[s] for s in SCORES] == [0.5, 0.5, 0.5] and row["dice_unanimous"] == 1
    assert (row["unanimous_share"], row["unanimous_foreground_share"]) == (0.5, 0.5)
    everywhere = class_row(pseudo_label, unanimous, reference, torch.ones(6).bool())
    assert everywhere == class_row(pseudo_label, unanimous, reference)


def test_class_without_known_foreground_is_not_measured_unless_it_is_known_everywhere():
    some, none = torch.tensor([0.9, 0.1, 0.1]), torch.zeros(3).bool()
    part = class_row(some, ~none, none, torch.tensor([1, 1, 0]).bool())
    assert list(part) == list(COLUMNS[2:]) and all(math.isnan(value) for value in part.values())
    assert class_row(some, ~none, none, ~none)["dice"] == 0


def test_mean_and_spread_leave_out_nan_and_say_so():
    assert spread([0.5, 0.7]) == "0.600 +- 0.141"
    assert spread([0.5, math.nan]) == "0.500 (n = 1)"
    assert spread([math.nan]) == "none"


# --- a run ---


@pytest.mark.parametrize("voters", ["both", "segmentation"])
def test_rows_are_those_of_the_unlabeled_cases_and_their_votes(tiny, tmp_path, capsys, voters):
    run = write_run(tmp_path / "run", tiny, objective__unanimity=voters)
    main(str(run), str(tiny))
    rows = rows_of(run)
    assert list(rows[0]) == list(COLUMNS) and {row["class"] for row in rows} == {"blob"}
    assert [row["case"] for row in rows] == [f"training_{number}" for number in range(LABELED, 6)]
    for number, row in enumerate(rows, LABELED):
        expected = expected_row(tiny, number, segmentations_alone=voters == "segmentation")
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, abs=1e-6)
    printed = capsys.readouterr().out
    mean = np.mean([float(row["precision_unanimous"]) for row in rows])
    assert "| blob | unanimous |" in printed and f"| {mean:.3f} +- " in printed


def test_rows_leave_out_what_nobody_annotated(tiny_copy, tmp_path):
    for number, part in ((3, np.s_[:, :, 9:]), (4, np.s_[:])):
        path = tiny_copy / "labels" / f"training_{number}.nii.gz"
        file = nibabel.load(path)
        label = np.asarray(file.dataobj).copy()
        assert label[part].any()
        label[part] = 255
        save(label, file.affine, path)
    run = write_run(tmp_path / "run", tiny_copy, ignore_value=255)
    main(str(run), str(tiny_copy))
    cut, unknown, whole = rows_of(run)
    for number, row in ((3, cut), (5, whole)):
        expected = expected_row(tiny_copy, number)
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, abs=1e-6)
    assert all(math.isnan(float(unknown[name])) for name in COLUMNS[2:])


def test_classes_that_were_not_annotated_are_not_measured(tiny, tmp_path, tiny_copy):
    lists = json.loads((tiny_copy / "dataset.json").read_text())
    lists["training"][LABELED]["annotated"] = [1]
    (tiny_copy / "dataset.json").write_text(json.dumps(lists))
    names, heads = ["blob", "other"], {"_target_": "test_pseudo_labels.TwoClasses", "levels": list(LEVELS[1:])}
    changes = {"num_classes": 2, "class_names": names, "network_def": heads}
    runs = [write_run(tmp_path / str(number), data, **changes) for number, data in enumerate((tiny, tiny_copy))]
    for run, data in zip(runs, (tiny, tiny_copy)):
        main(str(run), str(data), cases=1)
    (first, other), (first_too, unknown) = map(rows_of, runs)
    assert first == first_too and float(other["dice"]) == 0
    assert all(math.isnan(float(unknown[name])) for name in COLUMNS[2:])


def test_methods_without_pseudo_labels_of_their_own_are_judged_by_their_segmentation_heads(tiny, tmp_path):
    objective = {"_target_": "scripts.methods.SupervisedObjective", "label_coding": "@label_coding"}
    run = write_run(tmp_path / "run", tiny, objective=objective)
    main(str(run), str(tiny), cases=1)
    (row,) = rows_of(run)
    expected = expected_row(tiny, LABELED, segmentations_alone=True)
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected, abs=1e-6)


def test_a_run_of_the_bundle_is_read_from_its_own_files(tiny, tmp_path):
    finished = run_bundle("training", "configs/train.json", **small(tiny, tmp_path / "run", max_iterations=2))
    assert finished.returncode == 0, finished.stderr
    main(str(tmp_path / "run"), str(tiny), path=str(tmp_path / "elsewhere" / "pseudo_labels.csv"))
    rows = rows_of(tmp_path / "elsewhere")
    assert [row["case"] for row in rows] == ["training_3", "training_4", "training_5"]
    assert all(0 <= float(row["unanimous_share"]) <= 1 for row in rows)


# --- bad input ---


def test_what_is_missing_is_named(tiny, tiny_copy, tmp_path):
    with pytest.raises(DataError, match=r"run\.json does not exist"):
        main(str(tmp_path), str(tiny))
    run = write_run(tmp_path / "run", tiny)
    with pytest.raises(DataError, match=r"model\.pt does not exist"):
        main(str(run), str(tiny), model_dir=str(tmp_path))
    delete_unlabeled_labels(tiny_copy)
    with pytest.raises(DataError, match="3 unlabeled training cases and no label file of any"):
        main(str(run), str(tiny_copy))
    distance_alone = {"_target_": "scripts.networks.VNet", "base_filters": 2, "tasks": ["distance"]}
    run = write_run(tmp_path / "other", tiny, network_def=distance_alone)
    torch.save(VNet(base_filters=2, tasks=("distance",)).state_dict(), run / "models" / "model.pt")
    with pytest.raises(DataError, match="has no segmentation head to make pseudo-labels"):
        main(str(run), str(tiny))
