"""Tests of partial labels: what nobody annotated changes no loss, gradient or metric; what is known counts as ever."""

from __future__ import annotations

import csv
import json
import math

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, las, merged, save, small, write_dataset
from scipy.ndimage import distance_transform_edt, gaussian_filter

from scripts.data import DataError, Datalist, KnownOnlyd, LabelCoding, MarkUnknownd, PreGeneratedMapd, RandomCropd
from scripts.data.label_coding import LARGEST_VALUE, MOST_PARTIAL_CLASSES
from scripts.distance import CascadedDistance, ExactDistance, SegmentationToDistance
from scripts.errors import users_error
from scripts.evaluation.case_metrics import CaseMetrics
from scripts.evaluation.metrics import METRIC_NAMES, segmentation_metrics
from scripts.methods.losses import cross_entropy, dice_loss, segmentation_loss, squared_error
from scripts.preflight import Preflight
from tools.reports.results import EvaluationResults

TRAIN, EVALUATE = "configs/train.json", "configs/evaluate.json"
METHODS = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.json"))
BRATS = [[1, 2, 4], [1, 4], [4]]


def line(*rows: list[float]) -> torch.Tensor:
    """One channel per row: (1, C, n, 1, 1), float32."""
    return torch.tensor(rows, dtype=torch.float32)[None, :, :, None, None]


def noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)


# --- label coding ---


@pytest.mark.parametrize(
    "num_classes, regions, ignore_value, annotated, known",
    [
        # label values 0 1 2 4 9 in this order
        (2, None, 9, None, [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]),
        (2, None, None, [1], [[1, 1, 1, 1, 1], [0, 1, 0, 0, 0]]),
        (2, None, 9, [1], [[1, 1, 1, 1, 0], [0, 1, 0, 0, 0]]),
        (2, None, None, [1, 2], [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
        (3, BRATS, None, [4], [[0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]]),
        (3, BRATS, 9, [1, 4], [[0, 1, 0, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]),
    ],
    ids=["ignored", "one-of-two", "both", "all", "innermost-region", "two-regions"],
)
def test_what_is_known_follows_the_table(num_classes, regions, ignore_value, annotated, known):
    coding = LabelCoding(num_classes, regions, ignore_value=ignore_value, partial=True)
    marked = coding.mark(line([0, 1, 2, 4, 9]), annotated)
    assert torch.equal(coding.known(marked).float(), line(*known))
    encoded, whole = coding.encode(marked), LabelCoding(num_classes, regions).encode(line([0, 1, 2, 4, 9]))
    drawn = torch.isin(line([0, 1, 2, 4, 9]), torch.tensor(annotated or [1.0, 2.0, 4.0]))
    assert torch.equal(encoded, whole * drawn)


def test_ignore_value_is_understood_in_labels_that_were_not_marked():
    coding = LabelCoding(2, ignore_value=255)
    assert torch.equal(coding.known(line([0, 1, 255])).float(), line([1, 1, 0], [1, 1, 0]))


def test_labels_without_an_ignore_value_are_not_partial():
    coding = LabelCoding(2)
    assert coding.known(line([0, 1, 2])) is None and not coding.partial


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 2, "ignore_value": 2}, r"ignore_value is 2, a label value; .* not in \[0, 1, 2\]"),
        *(
            ({"num_classes": 2, "ignore_value": value}, rf"ignore_value is {value}; .* from 1 to 32767: write another")
            for value in (-1, 32768, 65535, 65536, 2.5)
        ),
        ({"num_classes": 1, "regions": [[40000]]}, r"label values are \[0, 40000\]; they must be from 0 to 32767"),
        ({"num_classes": 1, "regions": [[-1]]}, r"label values are \[-1, 0\]; they must be from 0 to 32767"),
        ({"num_classes": 16, "ignore_value": 255}, "num_classes is 16; partial labels may have at most 15 classes"),
        ({"num_classes": 16, "partial": True}, "num_classes is 16; partial labels may have at most 15 classes"),
    ],
)
def test_coding_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LabelCoding(**options)


def test_largest_ignore_value_survives_the_types_of_labels():
    coding = LabelCoding(2, ignore_value=LARGEST_VALUE)
    label = line([0, 1, 2, LARGEST_VALUE]).to(torch.int16)
    assert coding.known(coding.mark(label, [2]))[0, :, :, 0, 0].int().tolist() == [[0, 0, 1, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32], ids=["training", "evaluation"])
def test_marks_of_the_most_classes_fit_the_types_of_labels(dtype):
    most = MOST_PARTIAL_CLASSES
    coding = LabelCoding(most, ignore_value=255)
    label = line([0, 1, most, 255]).to(dtype)
    known = coding.known(coding.mark(label, [1]))
    assert known[0, :, :, 0, 0].int().tolist() == [[1, 1, 1, 0]] + [[0, 1, 0, 0]] * (most - 1)
    assert coding.mark(label).flatten().tolist() == [0, 1, most, 1 - 2**most]


# --- data ---


def test_marking_takes_the_cases_list_and_leaves_the_file_values_of_others():
    mark = MarkUnknownd("label", LabelCoding(2, partial=True))
    label = torch.tensor([0.0, 1, 2]).reshape(1, 3, 1, 1)
    part, whole = mark({"label": label, "annotated": [1]}), mark({"label": label})
    assert set(part) == {"label"}
    assert part["label"].flatten().tolist() == [-2, 1, -2]
    assert whole["label"].flatten().tolist() == [0, 1, 2]
    assert label.flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("regions, prediction, expected", [(None, [1, 2, 2], [1, 2, 0]), ([[1, 2], [2]], None, None)])
def test_predicted_classes_go_where_the_label_does_not_know_of_them(regions, prediction, expected):
    coding = LabelCoding(2, regions, ignore_value=9)
    only = KnownOnlyd("pred", coding)
    label = torch.tensor([0.0, 0, 9]).reshape(1, 3, 1, 1)
    if regions is None:
        pred = torch.tensor(prediction, dtype=torch.uint8).reshape(1, 3, 1, 1)
        assert only({"pred": pred, "label": label})["pred"].flatten().tolist() == expected
    else:
        kept = only({"pred": torch.ones(2, 3, 1, 1, dtype=torch.uint8), "label": label})["pred"]
        assert kept.flatten(1).tolist() == [[1, 1, 0]] * 2


def test_crops_are_never_centred_on_a_voxel_that_is_unknown():
    label = torch.zeros(1, 32, 32, 32)
    label[:, :, :, 16:] = -1
    label[0, 8, 8, 8] = 1
    crop = RandomCropd(["label"], [5, 5, 5], foreground=1).set_random_state(0)
    assert all(crop({"label": label})["label"][0, 2, 2, 2] == 1 for _ in range(10))


@pytest.mark.parametrize("annotated", [[], "1", [1.5], [0], [True], [-1]])
def test_list_of_annotated_values_that_is_none_is_refused(tmp_path, annotated):
    entry = {"image": "a.nii.gz", "label": "b.nii.gz", "annotated": annotated}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(DataError, match=r"entry 0 of 'training' has 'annotated'"):
        Datalist(tmp_path)


def test_unlabeled_cases_do_not_say_what_was_annotated(tmp_path):
    entry = {"image": "a.nii.gz", "label": "b.nii.gz", "annotated": [1]}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry, {"image": "c.nii.gz"}]}))
    datalist = Datalist(tmp_path)
    assert datalist.partial and datalist.labeled(1)[0]["annotated"] == [1]
    assert all(set(case) == {"image"} for case in datalist.unlabeled(0))


# --- losses ---


def test_dice_counts_known_voxels_and_averages_over_the_classes_that_are_known():
    probability, target = line([0.5, 1, 0.25], [0.5, 0.5, 0.5]), line([1, 0, 1], [1, 1, 1])
    known = line([1, 0, 1], [0, 0, 0]).bool()
    # Class 1, voxels 0 and 2: (0.5 + 0.25) * 2 / (0.3125 + 2).
    assert dice_loss(probability, target, known).item() == pytest.approx(1 - 1.5 / 2.3125, rel=1e-5)


def test_sigmoid_cross_entropy_is_the_mean_over_known_voxels_and_classes():
    known = line([1, 0], [0, 1]).bool()
    value = cross_entropy(line([0, 5], [7, math.log(3)]), line([1, 0], [0, 0]), known)
    assert value.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_softmax_cross_entropy_is_that_of_the_outcomes_that_are_possible():
    # Probabilities 1/8, 3/8, 4/8 of background and two classes in every voxel.
    logits = torch.log(torch.tensor([1.0, 3, 4])).reshape(1, 3, 1, 1, 1).expand(1, 3, 4, 1, 1)
    target = line([0, 1, 0, 0], [0, 0, 0, 0])
    known = line([1, 1, 1, 0], [1, 0, 0, 0]).bool()
    # Background; class 1; background or class 2; anything, which does not count.
    expected = -(math.log(1 / 8) + math.log(3 / 8) + math.log(5 / 8)) / 3
    assert cross_entropy(logits, target, known).item() == pytest.approx(expected)


def test_nothing_known_costs_nothing_and_gives_no_gradient():
    for maps in (2, 3):
        logits = torch.randn(1, maps, 3, 3, 3, requires_grad=True)
        loss = segmentation_loss(logits, torch.zeros(1, 2, 3, 3, 3), torch.zeros(1, 2, 3, 3, 3, dtype=torch.bool))
        loss.backward()
        assert loss.item() == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("maps", [2, 3], ids=["sigmoid", "softmax"])
def test_everything_known_gives_the_loss_of_whole_labels(maps):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, maps, 6, 5, 4, generator=generator)
    target = LabelCoding(2).encode(torch.randint(0, 3, (2, 1, 6, 5, 4), generator=generator).float())
    known = torch.ones_like(target, dtype=torch.bool)
    assert torch.equal(dice_loss(logits[:, :2].sigmoid(), target, known), dice_loss(logits[:, :2].sigmoid(), target))
    torch.testing.assert_close(segmentation_loss(logits, target, known), segmentation_loss(logits, target))
    assert torch.equal(squared_error(logits[:, :2], target, known), F.mse_loss(logits[:, :2], target))


# --- distance maps ---


def test_distance_is_known_where_no_unknown_voxel_is_nearer_than_the_boundary():
    label, known = line([1, 1, 0, 0, 0, 0, 0, 0]), line([1, 1, 1, 1, 1, 1, 0, 1]).bool()
    part = SegmentationToDistance(ExactDistance(), factor=1).of_partial(label, known)
    # Distances outside 1 2 3 4 and, behind the unknown voxel 6, 6; unknown ones lie 4 3 2 1 away, and 1.
    assert part.known.flatten().tolist() == [True, True, True, True, False, False, False, False]
    assert part.map.flatten()[:4].tolist() == [-1, -0.5, 0.5, 1]


def random_partial(seed: int, shape=(2, 2, 12, 10, 8)) -> tuple[np.ndarray, np.ndarray]:
    label = np.stack([[noise(seed + 10 * i + j, shape[2:]) for j in range(shape[1])] for i in range(shape[0])]) > 0.02
    unknown = np.stack([[noise(seed + 7 + i + 3 * j, shape[2:]) for j in range(shape[1])] for i in range(shape[0])])
    return label, unknown < 0.06


@pytest.mark.parametrize("transform", [ExactDistance(), ExactDistance((1.0, 0.7, 3.0))])
@pytest.mark.parametrize("factor", [1, 0.5])
def test_known_distances_are_the_same_however_the_unknown_voxels_are_filled(transform, factor):
    operator = SegmentationToDistance(transform, factor=factor, zero_inner_boundary=True)
    label, known = random_partial(0)
    rng = np.random.default_rng(1)
    results = []
    for share in (0, 1, 0.5, 0.02, 0.98):
        filled = np.where(known, label, rng.random(label.shape) < share)
        mask = torch.tensor(filled, dtype=torch.float32)
        results.append(operator.of_partial(mask, torch.tensor(known)))
        # The map of the filling as if it were the truth, on the scale of the known distances.
        whole = operator.with_validity(mask, within=results[0].known)[0]
        torch.testing.assert_close(whole[results[0].known], results[0].map[results[0].known], atol=1e-6, rtol=0)
    assert all(torch.equal(part.map, results[0].map) for part in results)
    share = results[0].known.float().mean()
    assert 0.05 < share < 0.95
    assert not (results[0].known & ~torch.tensor(known)).any()


def test_no_distance_that_could_be_known_is_left_out():
    label, known = random_partial(3, (1, 1, 12, 10, 8))
    part = SegmentationToDistance(ExactDistance(), factor=1).of_partial(
        torch.tensor(label, dtype=torch.float32), torch.tensor(known)
    )
    least, most = (label & known)[0, 0], (label | ~known)[0, 0]
    fixed = (distance_transform_edt(~least) == distance_transform_edt(~most)) & (
        distance_transform_edt(least) == distance_transform_edt(most)
    )
    np.testing.assert_array_equal(part.known[0, 0].numpy(), fixed)


@pytest.mark.parametrize("transform", [ExactDistance(), CascadedDistance()])
@pytest.mark.parametrize("factor", [1, 0.5])
def test_everything_known_gives_the_map_of_the_whole_label(transform, factor):
    label, _ = random_partial(5)
    label[1, 1] = False  # degenerate
    mask = torch.tensor(label, dtype=torch.float32)
    operator = SegmentationToDistance(transform, factor=factor)
    part = operator.of_partial(mask, torch.ones_like(mask, dtype=torch.bool))
    assert part.known.all() and torch.equal(part.map, operator(mask))


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["empty", "full"])
def test_crop_whose_boundary_is_not_known_has_no_known_distance(value):
    known = torch.ones(1, 1, 6, 6, 6, dtype=torch.bool)
    known[..., 5] = False
    part = SegmentationToDistance(ExactDistance(), factor=1).of_partial(torch.full((1, 1, 6, 6, 6), value), known)
    assert not part.known.any()


def test_map_of_a_whole_volume_is_nan_where_it_is_not_known():
    operator, coding = SegmentationToDistance(ExactDistance(), factor=1), LabelCoding(1, ignore_value=9)
    label = torch.tensor([1.0, 1, 0, 0, 0, 0, 9, 0]).reshape(1, 8, 1, 1)
    made = PreGeneratedMapd("label", coding, operator)({"label": coding.mark(label)})["distance"].flatten()
    assert made[:4].tolist() == [-1, -0.5, 0.5, 1] and made[4:].isnan().all()


# --- methods ---


class Given(LabelCoding):
    """Labels that are given as channels, and where they are known."""

    def __init__(self, label: torch.Tensor, known: torch.Tensor | None) -> None:
        super().__init__(label.shape[1], partial=known is not None)
        self.label, self.where = label, known

    def encode(self, label: torch.Tensor) -> torch.Tensor:
        return self.label

    def known(self, label: torch.Tensor) -> torch.Tensor | None:
        return self.where


def loss_and_gradients(parts, image, label, known):
    """Terms of a method's loss for such labels, and its gradients in all weights."""
    network, objective = parts
    torch.manual_seed(0)
    network.zero_grad()
    for module in objective.modules():
        if hasattr(module, "label_coding"):
            module.label_coding = Given(label, known)
    labeled = {"image": image[: len(label)], "label": torch.zeros(len(label), 1, *label.shape[2:])}
    targets = objective.views(labeled, {"image": image[len(label) :]}, 20)
    loss = objective(objective.predict(network, targets["image"]), targets, 20)
    loss.total.backward()
    return loss.terms, [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]


@pytest.mark.parametrize("method", METHODS)
def test_labels_of_unknown_voxels_change_neither_loss_nor_gradient_of_any_method(method, tiny, tmp_path):
    parser = merged(TRAIN, f"configs/methods/{method}.json")
    parser.update(small(tiny, tmp_path, base_filters=1, num_classes=2))
    torch.manual_seed(0)
    parts = parser.get_parsed_content("network").train(), parser.get_parsed_content("objective")
    # Every term counts, whatever the configuration switches off.
    parts[1].weights = {name: weight or 1.0 for name, weight in parts[1].weights.items()}
    image = torch.randn(4, 1, 16, 16, 16)
    label = torch.zeros(2, 2, 16, 16, 16)
    label[:, 0, 3:7, 4:12, 4:12], label[:, 1, 7:11, 4:12, 4:12] = 1, 1
    known = torch.ones_like(label, dtype=torch.bool)
    known[0, :, :, :, 9:] = False  # slices
    known[1, 1] = label[1, 0] > 0  # a class
    other = torch.where(known, label, 1 - label)
    other[:, 1] *= 1 - other[:, 0]
    assert ((other != label) & ~known).any() and not ((other != label) & known).any()

    (terms, gradients), (changed, others) = (loss_and_gradients(parts, image, y, known) for y in (label, other))
    assert terms == changed and all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    assert all(value.isfinite() for value in terms.values()) and all(grad.isfinite().all() for grad in gradients)
    # The labels do matter where they are taken as known.
    (naive, _), (naively, _) = (loss_and_gradients(parts, image, y, None) for y in (label, other))
    supervised = {name for name in terms if name.startswith("supervised") or name == "mistake"}
    if method == "dbisl_mixed":
        # It looks at predictions that are neither empty nor full, of which this network has few.
        supervised.remove("supervised_s2r")
    assert supervised and [name for name in supervised if naive[name] == naively[name]] == []
    # And a label that is known everywhere costs what it did.
    everywhere, _ = loss_and_gradients(parts, image, label, torch.ones_like(known))
    for name, value in naive.items():
        torch.testing.assert_close(everywhere[name], value, msg=name)


# --- metrics ---


def cube(shape=(10, 10, 10), start=2, end=6) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[start:end, start:end, start:end] = True
    return mask


def test_overlap_counts_known_voxels_alone():
    prediction, reference, known = (np.zeros((6, 1, 1), bool) for _ in range(3))
    prediction[1:5], reference[2:6], known[:4] = True, True, True
    values = segmentation_metrics(prediction, reference, spacing=(1, 1, 1), known=known)
    # Known: 1 2 3 are predicted, 2 3 are true.
    assert values["dice"] == pytest.approx(4 / 5) and values["jaccard"] == pytest.approx(2 / 3)


def test_metrics_of_a_reference_that_is_known_everywhere_are_those_without_known():
    prediction, reference = cube(), cube(start=3, end=7)
    whole = segmentation_metrics(prediction, reference, spacing=(1, 2, 3))
    assert segmentation_metrics(prediction, reference, spacing=(1, 2, 3), known=np.ones_like(cube())) == whole


@pytest.mark.parametrize("seed", range(3))
def test_reference_of_unknown_voxels_changes_no_metric_and_known_distances_are_true(seed):
    prediction, truth = noise(seed, (16, 14, 12)) > 0.02, noise(seed + 50, (16, 14, 12)) + noise(seed, (16, 14, 12)) > 0
    known = np.ones(truth.shape, bool)
    known[:, :, 8:] = False
    random = np.where(known, truth, np.random.default_rng(seed).random(truth.shape) < 0.5)
    first, second = (
        segmentation_metrics(prediction, mask, spacing=(1.0, 1.2, 2.0), known=known) for mask in (truth, random)
    )
    assert first == second and all(math.isfinite(value) for value in first.values())


def test_distances_that_an_unknown_voxel_could_shorten_are_left_out():
    """Along a line: surfaces of the prediction at 2 and 9, of the reference at 3; 11 is unknown."""
    prediction, reference = np.zeros((14, 1, 1), bool), np.zeros((14, 1, 1), bool)
    prediction[[2, 9]], reference[3] = True, True
    known = np.ones_like(reference)
    whole = segmentation_metrics(prediction, reference, spacing=(2, 1, 1), known=known)
    assert whole["asd_voxel"] == pytest.approx((1 + 6) / 2)
    known[11] = False
    part = segmentation_metrics(prediction, reference, spacing=(2, 1, 1), known=known)
    assert part["asd_voxel"] == 1 and part["asd_mm"] == 2 and part["dice"] == whole["dice"]


def test_surface_that_the_end_of_the_annotation_cuts_is_none():
    """A cube of which the lower half is annotated, and the same cube predicted: the cut is no surface."""
    known = np.ones((10, 10, 10), bool)
    known[:, :, 4:] = False
    values = segmentation_metrics(cube(), cube(), spacing=(1, 1, 1), known=known)
    assert values == dict(zip(METRIC_NAMES, (1, 1, 0, 0, 0, 0, 1)))
    shorter = cube()
    shorter[:, :, 4:] = False  # what it predicts where nothing is known does not count
    values = segmentation_metrics(shorter, cube(), spacing=(1, 1, 1), known=known)
    assert values["dice"] == 1


@pytest.mark.parametrize("reference, expected", [(np.zeros((10, 10, 10), bool), math.nan), (cube(), 0.0)])
def test_empty_masks_where_something_is_unknown(reference, expected):
    known = np.ones((10, 10, 10), bool)
    known[9] = False
    values = segmentation_metrics(np.zeros_like(reference), reference, spacing=(1, 1, 1), known=known)
    assert values["dice"] == pytest.approx(expected, nan_ok=True) and math.isnan(values["asd_mm"])


# --- preflight ---


def findings(folder, coding) -> list[str]:
    checks = Preflight(
        dataset_dir=folder, output_dir=folder / "out", num_labeled=3, unlabeled_batch_size=0, label_coding=coding
    )
    return [f"{p.level} {p}" for p in checks.report().problems if p.check not in ("disk", "spacing")]


def test_ignore_value_is_no_problem_and_no_foreground(tmp_path):
    folder = write_dataset(tmp_path / "data", counts=(3, 0, 0))
    path = folder / "labels" / "training_0.nii.gz"
    label = np.asarray(nibabel.load(path).dataobj)
    save(np.where(label, 255, 0).astype(np.uint8), nibabel.load(path).affine, path)
    (error,) = [text for text in findings(folder, LabelCoding(1)) if text.startswith("error")]
    assert "label values [255]" in error and "ignore_value to a value for what nobody annotated" in error
    (warning,) = findings(folder, LabelCoding(1, ignore_value=255))
    assert warning.startswith("warning") and "has no foreground voxel" in warning


def test_annotated_values_that_do_not_exist_are_an_error(tmp_path):
    folder = write_dataset(tmp_path / "data", counts=(3, 0, 0))
    lists = json.loads((folder / "dataset.json").read_text())
    lists["training"][1]["annotated"] = [3]
    (folder / "dataset.json").write_text(json.dumps(lists))
    (error,) = findings(folder, LabelCoding(1, partial=True))
    assert "training_1.nii.gz has 'annotated' [3] in dataset.json, and the label values are [1]" in error


def test_ignore_value_that_cannot_be_ends_a_preflight_and_a_training_with_its_remedy(workflow, tiny, tmp_path):
    for files, run_id in (((TRAIN, "configs/preflight.json"), "preflight"), ((TRAIN,), "training")):
        bundle = workflow(*files, run_id=run_id, **small(tiny, tmp_path / run_id, ignore_value=65535))
        # MONAI wraps what a config raises; print_briefly shows the user the first of it.
        with pytest.raises((RuntimeError, ValueError)) as caught:
            bundle.initialize()
            bundle.run()
        message = str(users_error(caught.value))
        assert "ignore_value is 65535; it must be a whole number from 1 to 32767: write another value" in message
        assert not (tmp_path / run_id / "models" / "model.pt").exists()


@pytest.mark.parametrize(
    "annotated, expected",
    [
        ([[1], [1], [1]], "warning labeled cases (3) have no voxel of the label values [2] that their"),
        ([[1], [1], None], None),
        ([[1], [1], [1, 2]], None),
        ([[3], [3], [3]], "error labeled cases (3) have no foreground voxel at all that their 'annotated' lets count"),
    ],
)
def test_class_that_no_labeled_case_lists_as_annotated_is_one_that_none_has(tmp_path, annotated, expected):
    folder = write_dataset(tmp_path / "data", num_classes=2, counts=(3, 0, 0))
    lists = json.loads((folder / "dataset.json").read_text())
    for case, values in zip(lists["training"], annotated):
        case.update({} if values is None else {"annotated": values})
    (folder / "dataset.json").write_text(json.dumps(lists))
    num_classes = 3 if [3] in annotated else 2
    problems = findings(folder, LabelCoding(num_classes, partial=True))
    assert len(problems) == (expected is not None) and all(text.startswith(expected) for text in problems)


# --- as a run ---


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """Two classes: case 0 without class 2, case 1 without its upper slices; validation and test without class 2."""
    folder = write_dataset(tmp_path_factory.mktemp("partial") / "data", num_classes=2)
    lists = json.loads((folder / "dataset.json").read_text())
    for case in (lists["training"][0], lists["validation"][0], lists["test"][0]):
        case["annotated"] = [1]
    (folder / "dataset.json").write_text(json.dumps(lists))
    label = np.asarray(nibabel.load(folder / "labels" / "training_1.nii.gz").dataobj).copy()
    label[:, :, 10:] = 255
    save(label, nibabel.load(folder / "labels" / "training_1.nii.gz").affine, folder / "labels" / "training_1.nii.gz")
    return folder


def test_training_and_evaluation_take_partial_labels(workflow, partial, tmp_path):
    results = []
    for name in ("drawn", "erased"):
        if name == "erased":  # class 2 of the case in which it was not annotated
            path = partial / "labels" / "training_0.nii.gz"
            label = np.asarray(nibabel.load(path).dataobj)
            assert (label == 2).any()
            save(np.where(label == 2, 0, label).astype(np.uint8), nibabel.load(path).affine, path)
        overrides = small(
            partial, tmp_path / name, num_classes=2, ignore_value=255, foreground_crops=0.5, max_iterations=2
        )
        bundle = workflow(TRAIN, **overrides)
        bundle.initialize()
        bundle.run()
        results.append(torch.load(tmp_path / name / "models" / "model.pt", weights_only=True))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])

    overrides = small(partial, tmp_path / "drawn", num_classes=2, ignore_value=255)
    bundle = workflow(TRAIN, EVALUATE, **overrides)
    bundle.initialize()
    bundle.run()
    with (tmp_path / "drawn" / "metrics.csv").open(newline="") as file:
        rows = {(row["case"], row["class"]): row for row in csv.DictReader(file)}
    assert math.isnan(float(rows["test_0", "2"]["dice"]))
    assert math.isfinite(float(rows["test_0", "1"]["dice"])) and math.isfinite(float(rows["test_1", "2"]["dice"]))
    report = EvaluationResults(tmp_path / "drawn", partial)
    assert report.dice("test_0") == float(rows["test_0", "1"]["dice"])


def test_handler_measures_what_is_known(tmp_path):
    from ignite.engine import Engine
    from monai.data import MetaTensor

    coding = LabelCoding(1, ignore_value=9)
    prediction, label = torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 8, 8)
    prediction[:, 2:5, 2:5, 2:6], label[:, 2:5, 2:5, 2:4] = 1, 1
    label[..., 4:] = 9
    affine = torch.tensor(las((1.0, 1.0, 1.0)))
    engine = Engine(lambda _, batch: batch)
    CaseMetrics(coding, tmp_path).attach(engine)
    engine.run([[{"pred": MetaTensor(prediction, affine=affine), "label": MetaTensor(label, affine=affine)}]])
    assert engine.state.metrics["test_mean_dice"] == 1
