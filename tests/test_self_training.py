"""Tests of self-training: hand-made votes and labels, networks whose votes are known, real crops, and the chain."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import LABELED, ROOT, SMALL, merged, real_data, run_bundle, run_process, small
from monai.transforms import RandAxisFlipd, RandFlipd, RandRotate90d
from test_partial_labels import Given
from test_pseudo_labels import LEVELS, Votes

from scripts.data import DataError, Datalist, LabelCoding
from scripts.files import sha256
from scripts.methods import SupervisedObjective
from scripts.methods.losses import cross_entropy, dice_loss
from tools.ensemble import Member, Prediction, agreement, agreements, mirrored_axes
from tools.self_training import main, pseudo_label

TRAIN = "configs/train.json"


class Probable(Votes):
    """The votes, and as its probability the mean of both segmentations."""

    def probability_of(self, heads):
        return 0.5 * (heads["logits_phi"].sigmoid() + heads["logits_psi"].sigmoid())


def line(*rows: list[float]) -> torch.Tensor:
    """One channel per row: (C, n, 1, 1), float32."""
    return torch.tensor(rows, dtype=torch.float32)[:, :, None, None]


def prediction(*segmentations: torch.Tensor, distances: tuple[torch.Tensor, ...] = ()) -> Prediction:
    heads = torch.stack(segmentations)
    far = torch.stack(distances) if distances else heads[:0]
    return Prediction(heads.mean(0), heads, far, {})


# --- scores and labels ---


def test_agreement_is_the_mean_dice_of_the_classes_that_either_mask_has():
    a, b = line([1, 1, 0, 0], [0, 0, 0, 0]) > 0, line([1, 0, 0, 0], [0, 0, 0, 0]) > 0
    assert agreement([(a, b)]) == pytest.approx(2 / 3)
    assert agreement([(a, b), (a, a)]) == pytest.approx(5 / 6)
    assert agreement([(a[1:], b[1:])]) == 0 and agreement([]) is None


def test_members_decoders_and_distances_are_compared_by_hand():
    first = prediction(line([0.9, 0.9, 0.1]), line([0.9, 0.2, 0.1]), distances=(line([-1, 1, 1]), line([-1, 1, 1])))
    second = prediction(line([0.8, 0.8, 0.8]))
    ensemble = torch.stack([first.probability, second.probability]).mean(0)  # 0.85, 0.675, 0.45
    found = agreements([first, second], ensemble)
    # Members: 1 1 0 and 1 1 1 beside 1 1 0. Decoders of the first: 1 1 0 and 1 0 0. Its mask 1 1 0, its distance 1 0 0.
    assert found.pop("mirrored") is None
    assert found == pytest.approx({"members": (1 + 4 / 5) / 2, "decoders": 2 / 3, "mask_distance": 2 / 3})
    assert set(agreements([second], second.probability).values()) == {None}


def test_voxels_on_which_a_head_differs_are_unknown():
    first = prediction(line([0.9, 0.9, 0.1, 0.1], [0, 0, 0.9, 0]), distances=(line([-1, 1, 1, 1], [1, 1, -1, 1]),))
    second = prediction(line([0.9, 0.9, 0.1, 0.1], [0, 0, 0.8, 0.7]))
    ensemble = torch.stack([first.probability, second.probability]).mean(0)
    coding = LabelCoding(2, ignore_value=9)
    label = pseudo_label([first, second], ensemble, coding, largest_component=False)
    assert label.flatten().tolist() == [1, 9, 2, 9] and label.shape == (1, 4, 1, 1)


def test_what_the_largest_component_removes_is_background_even_where_it_was_doubted():
    heads = line([0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.9]), line([0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.2])
    one = prediction(*heads)
    coding = LabelCoding(1, ignore_value=255)
    labels = [pseudo_label([one], one.probability, coding, largest_component=on).flatten() for on in (False, True)]
    assert labels[0].tolist() == [1, 1, 0, 0, 1, 0, 255]
    assert labels[1].tolist() == [1, 1, 0, 0, 0, 0, 0]


def test_regions_become_the_value_with_the_same_regions_and_others_are_unknown():
    regions = line([1, 1, 1, 0, 0], [0, 1, 1, 0, 1], [0, 0, 1, 0, 0])
    one, coding = prediction(regions, regions), LabelCoding(3, [[1, 2, 4], [1, 4], [4]], ignore_value=9)
    assert pseudo_label([one], regions, coding, largest_component=False).flatten().tolist() == [2, 1, 4, 0, 9]


@pytest.mark.parametrize(
    "transforms, axes",
    [
        ([RandFlipd("image", prob=0.5, spatial_axis=0)], [0]),
        ([RandFlipd("image", prob=0, spatial_axis=0), RandFlipd("image", prob=0.5, spatial_axis=[-1])], [2]),
        ([RandFlipd("image", prob=0.5, spatial_axis=[0, 1]), RandFlipd("image", prob=0.5)], []),
        ([RandAxisFlipd("image", prob=0.5)], [0, 1, 2]),
        ([RandRotate90d("image", prob=1)], []),
    ],
)
def test_axes_count_as_mirrored_where_the_training_mirrors_them_alone(transforms, axes):
    assert mirrored_axes(transforms) == axes


# --- weights of labels ---


def test_losses_are_weighted_means_by_hand():
    probability, target, weight = torch.tensor([0.5, 1.0, 0.25]), torch.tensor([1.0, 0, 1]), torch.tensor([1, 0.5, 0])
    shape = (1, 1, 3, 1, 1)
    dice = dice_loss(probability.view(shape), target.view(shape), weight.view(shape))
    # 2 * 0.5 / (0.25 + 0.5 * 1 + 1)
    assert dice.item() == pytest.approx(1 - 1 / 1.75, rel=1e-4)
    logits = torch.tensor([0.0, -np.log(3), 50]).view(shape)
    expected = (np.log(2) + 0.5 * np.log(4 / 3)) / 1.5
    assert cross_entropy(logits.float(), target.view(shape), weight.view(shape)).item() == pytest.approx(expected)
    softmax = torch.cat([torch.zeros_like(logits), logits], 1).float()
    assert cross_entropy(softmax, target.view(shape), weight.view(shape)).item() == pytest.approx(expected)


# Mixed crops carry the weight in their views, see below.
ALL_METHODS = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.json"))
METHODS = ["dbisl", "supervised", "dtc", "dtml", "dual_networks", "cps", "sassnet", "urpc"]


@pytest.mark.parametrize("method", METHODS)
def test_weight_one_is_a_true_label_weight_nought_an_unknown_one_and_between_lies_between(method, tiny, tmp_path):
    parser = merged(TRAIN, f"configs/methods/{method}.json")
    parser.update(small(tiny, tmp_path, base_filters=1))
    torch.manual_seed(0)
    network, objective = parser.get_parsed_content("network").train(), parser.get_parsed_content("objective")
    image, label = torch.randn(4, 1, 16, 16, 16), torch.zeros(2, 1, 16, 16, 16)
    label[0, :, 3:9, 4:12, 4:12], label[1, :, 8:14, 2:9, 4:12] = 1, 1
    known = torch.ones(2, 1, 16, 16, 16, dtype=torch.bool)
    known[1] = False
    torch.manual_seed(0)
    heads = network(image)

    def terms(where: torch.Tensor | None, weight: float | None) -> dict[str, float]:
        objective.label_coding = Given(label, where)
        targets = {"image": image, "label": label}
        if weight is not None:
            targets["label_weight"] = torch.tensor([1.0, weight]).view(2, 1, 1, 1, 1)
        torch.manual_seed(0)
        return {name: value.item() for name, value in objective(heads, targets, 20).terms.items()}

    whole, unknown = terms(None, None), terms(known, None)
    assert terms(None, 1.0) == pytest.approx(whole, rel=1e-4) and terms(None, 0.0) == pytest.approx(unknown, rel=1e-4)
    half = terms(None, 0.5)
    supervised = [name for name in half if name.startswith("supervised") and whole[name] != unknown[name]]
    assert supervised
    for name in supervised:
        low, high = sorted([whole[name], unknown[name]])
        assert low <= half[name] <= high, name


@pytest.mark.parametrize("method", ALL_METHODS)
def test_weights_go_through_the_views_and_the_loss_of_every_method(method, tiny, tmp_path):
    parser = merged(TRAIN, f"configs/methods/{method}.json")
    parser.update(small(tiny, tmp_path, base_filters=1, ignore_value=255))
    torch.manual_seed(0)
    network, objective = parser.get_parsed_content("network").train(), parser.get_parsed_content("objective")
    label = torch.zeros(3, 1, 16, 16, 16)
    label[:, :, 3:9, 4:12, 4:12] = 1
    label[2, :, :, :, 13:] = 255
    unlabeled = {"image": torch.randn(2, 1, 16, 16, 16)}

    def total(weight: float) -> float:
        labeled = {"image": torch.ones(3, 1, 16, 16, 16) * label, "label": objective.label_coding.mark(label)}
        labeled["label_weight"] = torch.tensor([1, 1, weight]).view(3, 1, 1, 1, 1)
        torch.manual_seed(0)
        views = objective.views(labeled, unlabeled, 3)
        return objective(objective.predict(network, views["image"]), views, 3).total.item()

    values = [total(weight) for weight in (1.0, 0.5)]
    assert np.isfinite(values).all() and values[0] != values[1]


def test_mixed_crops_carry_the_weight_voxel_by_voxel(tiny, tmp_path):
    parser = merged(TRAIN, "configs/methods/bcp.json")
    parser.update(small(tiny, tmp_path, base_filters=1))
    objective = parser.get_parsed_content("objective")
    labeled = {"image": torch.zeros(2, 1, 16, 16, 16), "label": torch.zeros(2, 1, 16, 16, 16)}
    labeled["label_weight"] = torch.tensor([1, 0.5]).view(2, 1, 1, 1, 1)
    views = objective.views(labeled, {"image": torch.zeros(2, 1, 16, 16, 16)}, 1)
    box = views["from_pseudo_label"][0] > 0
    assert 0 < box.sum() < box.numel()
    for n, weight in ((0, 1), (1, 0.5)):
        assert torch.equal(views["from_label"][n], weight * ~box)
        assert torch.equal(views["from_label"][n + 2], weight * box)
    pasted = SupervisedObjective(LabelCoding(1), copy_paste=0.5).views(labeled, {}, 0)
    assert pasted["label_weight"].shape == labeled["image"].shape
    assert (pasted["label_weight"][0] == 0.5).sum() == 8**3 == (pasted["label_weight"][1] == 1).sum()


# --- lists ---


def with_pseudo_labels(folder: Path, *, cases: int = 2, **entry: object) -> dict[str, list[dict]]:
    """Lists the last training cases as if their labels were pseudo-labels, and returns what was written."""
    lists = json.loads((folder / "dataset.json").read_text())
    lists["pseudo_labeled"] = [{**case, "pseudo_label": {}} for case in lists["training"][-cases:]]
    lists["training"][-cases:] = [{"image": case["image"]} for case in lists["training"][-cases:]]
    for name, value in entry.items():
        lists[name] = value
    (folder / "dataset.json").write_text(json.dumps(lists))
    return lists


def test_pseudo_labeled_cases_stay_unlabeled_and_give_way_to_true_labels(tiny_copy):
    lists = json.loads((tiny_copy / "dataset.json").read_text())
    pseudo = [{"image": case["image"], "label": f"made/{n}.nii.gz"} for n, case in enumerate(lists["training"][2:])]
    (tiny_copy / "dataset.json").write_text(json.dumps({**lists, "pseudo_labeled": pseudo}))
    datalist = Datalist(tiny_copy)
    found = datalist.pseudo_labeled(LABELED, batch_size=1)
    assert [Path(case["label"]).name for case in found] == ["1.nii.gz", "2.nii.gz", "3.nii.gz"]
    assert [case["image"] for case in found] == [case["image"] for case in datalist.unlabeled(LABELED)]
    with pytest.raises(DataError, match="pseudo_batch_size is 1"):
        datalist.pseudo_labeled(6, batch_size=1)


def test_partly_annotated_pseudo_labels_make_labels_partial(tiny_copy):
    lists = json.loads((tiny_copy / "dataset.json").read_text())
    entry = {"image": lists["training"][3]["image"], "label": "made.nii.gz", "annotated": [1]}
    (tiny_copy / "dataset.json").write_text(json.dumps({**lists, "pseudo_labeled": [entry]}))
    assert Datalist(tiny_copy).partial


def test_pseudo_labels_that_are_not_asked_for_are_left_out_and_that_is_said(tiny_copy, caplog):
    with_pseudo_labels(tiny_copy)
    assert Datalist(tiny_copy).pseudo_labeled(LABELED, batch_size=0) == []
    assert "pseudo_batch_size is 0" in caplog.text


@pytest.mark.parametrize("name", ["training", "validation", "test"])
def test_pseudo_label_among_true_labels_is_refused(tiny_copy, name):
    lists = with_pseudo_labels(tiny_copy)
    path = tiny_copy / "dataset.json"
    marked = {**lists, name: [*lists[name], lists["pseudo_labeled"][0]], "pseudo_labeled": []}
    path.write_text(json.dumps(marked))
    with pytest.raises(DataError, match=rf"{path}: entry \d of '{name}'"):
        Datalist(tiny_copy)
    # The mark was taken off, and the file is reached by another path.
    label = str(tiny_copy / "labels" / ".." / lists["pseudo_labeled"][0]["label"])
    path.write_text(json.dumps({**lists, name: [*lists[name], {"image": "images/other.nii.gz", "label": label}]}))
    with pytest.raises(DataError, match=rf"'{name}' takes .*training_4\.nii\.gz"):
        Datalist(tiny_copy)


def test_evaluated_image_with_a_pseudo_label_is_refused_also_when_splits_put_it_there(tiny_copy):
    with_pseudo_labels(tiny_copy)
    Datalist(tiny_copy, splits={"training": [0, 6]})
    with pytest.raises(DataError, match=r"training_5\.nii\.gz of 'test'"):
        Datalist(tiny_copy, splits={"training": [0, 5], "test": [5, 6]})


# --- training ---


def test_batches_hold_true_labels_and_pseudo_labels_and_the_last_ones_true_labels_alone(tiny_copy, tmp_path, workflow):
    with_pseudo_labels(tiny_copy)
    seen, files = [], []

    def steps(**changes):
        options = {"pseudo_batch_size": 1, "pseudo_weight": 0.25, "true_label_iterations": 1, "checkpoint_interval": 2}
        bundle = workflow(TRAIN, run_id="steps", **small(tiny_copy, tmp_path / "run", **{**options, **changes}))
        bundle.parser["steps"] = bundle.parser["training"][2:]
        bundle.initialize()
        objective, trainer = (bundle.parser.get_parsed_content(name) for name in ("objective", "train#trainer"))
        plain = objective.views

        def views(labeled, unlabeled, iteration):
            seen.append((iteration, len(unlabeled["image"]), labeled.get("label_weight"), labeled["image"].clone()))
            files.append(trainer.state.files)
            return plain(labeled, unlabeled, iteration)

        objective.views = views
        bundle.run()

    steps()
    assert [(iteration, unlabeled) for iteration, unlabeled, *_ in seen] == [(n, 2) for n in range(4)]
    weights = [None if weight is None else weight.flatten().tolist() for _, _, weight, _ in seen]
    assert weights == [[1, 1, 0.25]] * 3 + [None]
    assert [len(image) for *_, image in seen] == [3, 3, 3, 2]
    for step in files[:3]:
        (made,) = step["pseudo_labeled"]
        assert Path(made).name in ("training_4.nii.gz", "training_5.nii.gz")
        assert {Path(file).name for file in step["labeled"]} <= {f"training_{n}.nii.gz" for n in range(LABELED)}
    assert "pseudo_labeled" not in files[3]
    whole = seen[:]
    seen.clear()
    (tmp_path / "run" / "models" / "model.pt").unlink()
    (tmp_path / "run" / "checkpoints" / "checkpoint_iteration_4.pt").unlink()
    steps()  # goes on behind iteration 2, with the same crops
    assert [iteration for iteration, *_ in seen] == [2, 3]
    assert all(torch.equal(again[3], before[3]) for again, before in zip(seen, whole[2:], strict=True))


@pytest.mark.parametrize(
    "changes",
    [{"pseudo_weight": 0}, {"pseudo_weight": 1.5}, {"true_label_iterations": -1}, {"true_label_iterations": 4}],
    ids=str,
)
def test_settings_out_of_range_are_refused(tiny_copy, tmp_path, changes):
    with_pseudo_labels(tiny_copy)
    parser = merged(TRAIN)
    parser.update(small(tiny_copy, tmp_path, pseudo_batch_size=1, **changes))
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("train#trainer")
    (name,) = changes
    assert isinstance(caught.value.__cause__, ValueError) and name in str(caught.value.__cause__)


# --- the command ---


def write_member(folder: Path, first: float, dataset: Path, *, described: bool = True, **changes) -> Path:
    """A training whose network votes as :class:`Votes` does, with its first level at ``first``."""
    (folder / "models").mkdir(parents=True)
    names = ("num_classes", "in_channels", "base_filters", "spacing", "patch_size", "stride")
    config = {**merged(TRAIN).get(), **SMALL, "ckpt_dir": str(folder / "models"), "dataset_dir": str(dataset)}
    config |= changes
    settings = {name: config[name] for name in names} | {"regions": None, "network": "@network_def"}
    settings["network_def"] = {"_target_": "test_self_training.Probable", "levels": list(LEVELS[1:])}
    (folder / "models" / "model.json").write_text(json.dumps(settings))
    torch.save({"first": torch.tensor(first)}, folder / "models" / "model.pt")
    if described:
        (folder / "run.json").write_text(json.dumps({"starts": [], "config": config}, default=str))
    return folder


def expected_label(dataset: Path, number: int, firsts: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Mask of the ensemble and where its voters agree, with numpy from the image file."""
    image = np.asarray(nibabel.load(dataset / f"images/training_{number}.nii.gz").dataobj, dtype=np.float64)
    z = (image - image.mean()) / image.std()
    levels = [[first, *LEVELS[1:]] for first in firsts]
    votes = np.stack([z > level for member in levels for level in member])
    mean = np.mean([1 / (1 + np.exp(-10 * (z - level))) for member in levels for level in member[:2]], axis=0)
    return mean > 0.5, votes.all(0) | ~votes.any(0)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "pseudo_labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_labels_scores_and_origins_are_those_of_the_ensemble(tiny, tmp_path):
    runs = [write_member(tmp_path / name, first, tiny) for name, first in (("a", 0.9), ("b", 0.6))]
    main([str(runs[0]), str(runs[1] / "models")], str(tiny), str(tmp_path / "out"), threshold=0.0, mirror=False)
    rows = rows_of(tmp_path / "out")
    lists = json.loads((tmp_path / "out" / "dataset.json").read_text())
    datalist = Datalist(tmp_path / "out")
    assert datalist.unlabeled(LABELED) == Datalist(tiny).unlabeled(LABELED) and datalist.test == Datalist(tiny).test
    for number, row, entry in zip(range(LABELED, 6), rows, lists["pseudo_labeled"], strict=True):
        file = nibabel.load(tmp_path / "out" / entry["label"])
        image = nibabel.load(tiny / f"images/training_{number}.nii.gz")
        np.testing.assert_allclose(file.affine, image.affine, atol=1e-4)
        mask, agreed = expected_label(tiny, number, [0.9, 0.6])
        np.testing.assert_array_equal(np.asarray(file.dataobj), np.where(agreed, mask, 255))
        assert row["case"] == f"training_{number}" and row["kept"] == "True"
        assert float(row["unknown_share"]) == pytest.approx((~agreed).mean(), abs=1e-6)
        agreements_found = [float(row[name]) for name in ("members", "decoders", "mask_distance")]
        assert 0 < float(row["score"]) == min(agreements_found) < 1
        origin = entry["pseudo_label"]
        assert origin["score"] == float(row["score"]) and len(origin["date"]) == 10
        assert [member["sha256"] for member in origin["members"]] == [
            sha256(run / "models" / "model.pt") for run in runs
        ]


def test_cases_under_the_threshold_and_broken_ones_are_left_out_and_listed(tiny_copy, tmp_path):
    run = write_member(tmp_path / "a", 0.9, tiny_copy)
    main(str(run), str(tiny_copy), str(tmp_path / "all"), threshold=0.0)
    scores = {row["case"]: float(row["score"]) for row in rows_of(tmp_path / "all")}
    (tiny_copy / "images" / "training_3.nii.gz").write_bytes(b"broken")
    threshold = (scores["training_4"] + scores["training_5"]) / 2
    with pytest.raises(DataError, match="1 of 3 cases failed"):
        main(str(run), str(tiny_copy), str(tmp_path / "out"), threshold=threshold)
    rows = {row["case"]: row for row in rows_of(tmp_path / "out")}
    better = max(("training_4", "training_5"), key=scores.__getitem__)
    assert {case for case, row in rows.items() if row["kept"] == "True"} == {better}
    assert "training_3.nii.gz" in rows["training_3"]["reason"]
    lists = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert [Path(entry["image"]).name for entry in lists["pseudo_labeled"]] == [f"{better}.nii.gz"]
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 1
    with pytest.raises(DataError, match="none of 3 cases"):
        main(str(run), str(tiny_copy), str(tmp_path / "out"), threshold=1.0)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_windows_are_mirrored_along_the_axes_of_the_training_alone(tiny, tmp_path):
    config = merged(TRAIN, "configs/data/hippocampus.json").get()
    run = write_member(tmp_path / "a", 0.9, tiny, augmentation=config["augmentation"])
    member = Member(run, mirror=True)
    assert member.origin["mirrored_axes"] == [0] and len(member.stacked.flips) == 2
    assert Member(run).origin["mirrored_axes"] == []
    alone = write_member(tmp_path / "b", 0.9, tiny, described=False)
    with pytest.raises(DataError, match="mirrored"):
        Member(alone / "models" / "model.pt", mirror=True)
    with pytest.raises(DataError, match="--num_labeled"):
        main(str(alone), str(tiny), str(tmp_path / "out"))


def test_runs_that_do_not_belong_together_are_refused(tiny, tmp_path):
    first = write_member(tmp_path / "a", 0.9, tiny)
    other = write_member(tmp_path / "b", 0.9, tiny, num_labeled=2)
    with pytest.raises(DataError, match=r"num_labeled differs .*3, 2"):
        main([str(first), str(other)], str(tiny), str(tmp_path / "out"))
    classes = write_member(tmp_path / "c", 0.9, tiny, num_classes=2)
    with pytest.raises(DataError, match="num_classes"):
        main([str(first), str(classes)], str(tiny), str(tmp_path / "out"))
    with pytest.raises(DataError, match="output_dir"):
        main(str(first), str(tiny), str(tiny))
    with pytest.raises(DataError, match="model.pt"):
        main(str(tmp_path / "nowhere"), str(tiny), str(tmp_path / "out"))


@pytest.mark.long
def test_the_chain_on_hippocampus_crops(tmp_path):
    folder = real_data("hippocampus")
    cases = json.loads((folder / "dataset.json").read_text())["training"]
    absolute = [{key: str(folder / path) for key, path in case.items()} for case in cases[:6]]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": absolute}))
    files = [TRAIN, "configs/data/hippocampus.json", "configs/budgets/cpu.json"]
    splits = {"training": [0, 4], "validation": [4, 5], "test": [5, 6]}
    options = {"splits": splits, "base_filters": 4, "max_iterations": 2, "num_labeled": 2}

    def train(data: Path, name: str, **more: object) -> None:
        output = tmp_path / name
        folders = {"dataset_dir": data, "output_dir": output, "ckpt_dir": output / "models"}
        finished = run_bundle("training", *files, **options, **folders, **more)
        assert finished.returncode == 0, finished.stderr

    train(tmp_path / "data", "first")
    command = ["-m", "tools.self_training", "--runs", str(tmp_path / "first"), "--threshold", "0"]
    command += ["--dataset_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "pseudo"), "--mirror", "true"]
    finished = run_process([sys.executable, *command])
    assert finished.returncode == 0, finished.stderr
    assert len(rows_of(tmp_path / "pseudo")) == 2
    entry, _ = json.loads((tmp_path / "pseudo" / "dataset.json").read_text())["pseudo_labeled"]
    assert entry["pseudo_label"]["members"][0]["mirrored_axes"] == [0]
    values = np.unique(np.asarray(nibabel.load(tmp_path / "pseudo" / entry["label"]).dataobj))
    assert set(values.tolist()) <= {0, 1, 2, 255}
    initial = tmp_path / "first" / "models" / "model.pt"
    more = {"pseudo_batch_size": 1, "true_label_iterations": 1, "ignore_value": 255, "initial_weights": initial}
    train(tmp_path / "pseudo", "second", **more)
    start = json.loads((tmp_path / "second" / "run.json").read_text())["starts"][0]
    assert start["data"]["pseudo_labeled"]["cases"] == 2
