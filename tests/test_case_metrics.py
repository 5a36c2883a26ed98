"""Tests of scripts/evaluation/case_metrics.py: the files of a small engine run, case names, errors."""

import csv
import logging
import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from scripts.evaluation import METRIC_NAMES, CaseMetrics

HEADER = ["case", "class", *METRIC_NAMES, "surface_tolerance_mm", "list"]
SPACING = (3.0, 2.0, 1.0)


class TwoClasses:
    """Label coding with the labels 1 and 2 as channels."""

    num_classes = 2

    def encode(self, label):
        assert label.ndim == 5 and label.shape[1] == 1
        return torch.cat([(label == value).float() for value in (1, 2)], dim=1)


class OneClass:
    num_classes = 1

    def encode(self, label):
        return (label == 1).float()


class TwoRegions:
    """Label coding of the region of the labels 2 and 3 and, within it, that of label 3."""

    num_classes = 2
    regions = [[2, 3], [3]]

    def encode(self, label):
        return torch.cat([label >= 2, label == 3], dim=1).float()


def image(voxels, *, name="/data/scan.nii.gz", shape=(6, 6, 6)):
    """Return an integer MetaTensor (1, H, W, D) with a turned and flipped affine, from {(h, w, d): label}."""
    volume = torch.zeros((1, *shape), dtype=torch.int64)
    for index, value in voxels.items():
        volume[(0, *index)] = value
    affine = torch.zeros(4, 4, dtype=torch.float64)
    affine[1, 0], affine[0, 1], affine[2, 2], affine[3, 3] = -SPACING[0], SPACING[1], SPACING[2], 1
    affine[:3, 3] = torch.tensor([-90.0, 126.0, -72.0])
    return MetaTensor(volume, affine=affine, meta={} if name is None else {"filename_or_obj": name})


def case(pred, label, **kwargs):
    return {"pred": image(pred, **kwargs), "label": image(label, **kwargs)}


def run(handler, batches):
    """Run an engine over `batches` with only this handler, and return the engine."""
    engine = Engine(lambda _, batch: batch)
    handler.attach(engine)
    engine.run(batches)
    return engine


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pick(summary, name, metric):
    (line,) = [line for line in summary if line["class"] == name and line["metric"] == metric]
    return line


A, B, FAR = (1, 1, 1), (4, 4, 4), (2, 3, 1)
GOOD = ({A: 1, B: 2}, {A: 1, B: 2})
# Class 1 lies (1, 2, 0) voxels off: 5 mm at the spacing (3, 2, 1). Class 2 is missed.
BAD = ({FAR: 1}, {A: 1, B: 2})


def test_metrics_csv_has_a_row_per_case_and_class_with_the_spacing_of_the_affine(tmp_path):
    run(
        CaseMetrics(TwoClasses(), tmp_path / "new" / "folder", class_names=["spleen", "liver"]),
        [[case(*GOOD, name="/x/good.nii.gz"), case(*BAD, name="/x/bad.nii")]],
    )
    with open(tmp_path / "new" / "folder" / "metrics.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    off = 5**0.5
    assert lines[0] == HEADER
    assert [line[:2] for line in lines[1:]] == [
        ["good", "spleen"],
        ["good", "liver"],
        ["bad", "spleen"],
        ["bad", "liver"],
    ]
    good, missed = [1, 1, 0, 0, 0, 0, 1, 1], [0, 0] + [math.nan] * 4 + [0, 1]
    for line, expected in zip(lines[1:], [good, good, [0, 0, 5, 5, off, off, 0, 1], missed]):
        assert [float(cell) for cell in line[2:-1]] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("name", ["test", "validation", None])
def test_both_tables_and_the_log_say_of_which_list_the_cases_are(tmp_path, caplog, name):
    with caplog.at_level(logging.INFO):
        run(CaseMetrics(OneClass(), tmp_path, case_list=name), [[case({A: 1}, {A: 1})]])
    for table in ("metrics.csv", "metrics_summary.csv"):
        assert {line["list"] for line in read(tmp_path / table)} == {name or ""}
    assert f"metrics of 1 {name} cases" in caplog.text if name else "metrics of 1 cases" in caplog.text


@pytest.mark.parametrize("tolerance, expected", [(4.9, 0), (5.0, 1)])
def test_surface_dice_counts_what_is_within_the_tolerance_in_mm_which_the_row_states(tmp_path, tolerance, expected):
    run(CaseMetrics(OneClass(), tmp_path, surface_tolerance=tolerance), [[case({FAR: 1}, {A: 1})]])
    (line,) = read(tmp_path / "metrics.csv")
    assert (float(line["surface_dice"]), float(line["surface_tolerance_mm"])) == (expected, tolerance)


@pytest.mark.parametrize("tolerance", [0, -1.0, math.nan, math.inf])
def test_unusable_tolerance_is_refused_before_the_run(tmp_path, tolerance):
    with pytest.raises(ValueError, match=f"surface_tolerance is {tolerance}"):
        CaseMetrics(OneClass(), tmp_path, surface_tolerance=tolerance)


def test_summary_csv_leaves_nan_distances_out_and_counts_empty_predictions(tmp_path):
    engine = run(CaseMetrics(TwoClasses(), tmp_path), [[case(*GOOD)], [case(*BAD)]])
    lines = read(tmp_path / "metrics_summary.csv")
    columns = ("class", "metric", "mean", "std", "ci95_low", "ci95_high", "n", "empty_predictions", "list")
    assert tuple(lines[0]) == columns
    assert [(line["class"], line["metric"]) for line in lines] == [
        (name, metric) for name in ("1", "2", "all") for metric in METRIC_NAMES
    ]
    first = pick(lines, "1", "hd95_mm")
    assert (float(first["mean"]), first["n"], first["empty_predictions"]) == (2.5, "2", "0")
    assert float(first["std"]) == pytest.approx(math.sqrt(2 * 2.5**2 / 1))
    second = pick(lines, "2", "hd95_mm")
    assert (float(second["mean"]), second["std"], second["n"], second["empty_predictions"]) == (0, "", "1", "1")
    together = pick(lines, "all", "hd95_mm")
    assert (float(together["mean"]), together["n"], together["empty_predictions"]) == (2.5, "2", "1")
    assert engine.state.metrics["test_mean_dice"] == float(pick(lines, "all", "dice")["mean"]) == 0.5


def test_a_single_class_has_no_row_all_and_gives_the_mean_dice(tmp_path):
    engine = run(CaseMetrics(OneClass(), tmp_path), [[case({A: 1}, {A: 1})], [case({FAR: 1}, {A: 1})]] * 2)
    assert {line["class"] for line in read(tmp_path / "metrics_summary.csv")} == {"1"}
    assert engine.state.metrics["test_mean_dice"] == 0.5


def test_mean_dice_of_several_classes_is_that_of_all(tmp_path):
    engine = run(CaseMetrics(TwoClasses(), tmp_path), [[case({A: 1}, {A: 1, B: 2})]])
    assert engine.state.metrics["test_mean_dice"] == 0.5


@pytest.mark.parametrize("as_maps", [True, False])
def test_overlapping_regions_are_taken_as_maps_or_as_labels(tmp_path, as_maps):
    pred = image({A: 3, FAR: 2})
    if as_maps:
        pred = MetaTensor(TwoRegions().encode(pred.as_tensor()[None])[0], meta=pred.meta)
    run(CaseMetrics(TwoRegions(), tmp_path), [[{"pred": pred, "label": image({A: 3, B: 2})}]])
    assert [float(line["dice"]) for line in read(tmp_path / "metrics.csv")] == [0.5, 1]


def test_several_channels_are_refused_for_exclusive_labels(tmp_path):
    item = {"pred": MetaTensor(torch.ones(2, 6, 6, 6)), "label": image({A: 1})}
    with pytest.raises(ValueError, match=r"'image'.*\(1, H, W, D\), got \(2, 6, 6, 6\) and \(1, 6, 6, 6\)"):
        run(CaseMetrics(TwoClasses(), tmp_path), [[item]])


def test_cases_measured_before_a_failure_stay_in_the_file_and_no_old_summary_beside_them(tmp_path):
    (tmp_path / "metrics_summary.csv").write_text("of an earlier run")
    (tmp_path / "metrics.csv").write_text("of an earlier run")
    wrong = {"pred": image({}, name="/x/p7.nii.gz"), "label": image({}, shape=(6, 6, 5))}
    with pytest.raises(ValueError, match=r"'p7'.*got \(1, 6, 6, 6\) and \(1, 6, 6, 5\)"):
        run(CaseMetrics(OneClass(), tmp_path), [[case({A: 1}, {A: 1}, name="first.nii.gz"), wrong]])
    assert [line["case"] for line in read(tmp_path / "metrics.csv")] == ["first"]
    assert not (tmp_path / "metrics_summary.csv").exists()


def test_every_case_is_in_the_file_before_the_next_iteration(tmp_path):
    seen = []

    def step(_, batch):
        seen.append([line["case"] for line in read(tmp_path / "metrics.csv")])
        return batch

    engine = Engine(step)
    CaseMetrics(OneClass(), tmp_path).attach(engine)
    engine.run([[case({A: 1}, {A: 1}, name=f"{letter}.nii.gz")] for letter in "abc"])
    assert seen == [[], ["a"], ["a", "b"]]


def test_a_second_run_starts_the_files_anew(tmp_path):
    handler = CaseMetrics(OneClass(), tmp_path)
    run(handler, [[case({A: 1}, {A: 1}, name="old.nii.gz")]])
    engine = run(handler, [[case({FAR: 1}, {A: 1}, name="new.nii.gz")]])
    assert [line["case"] for line in read(tmp_path / "metrics.csv")] == ["new"]
    assert pick(read(tmp_path / "metrics_summary.csv"), "1", "dice")["n"] == "1"
    assert engine.state.metrics["test_mean_dice"] == 0


@pytest.mark.parametrize(
    "source, expected",
    [
        ("/data/la_003.nii.gz", "la_003"),
        ("la_003.NII", "la_003"),
        ("/data/visit.2.nrrd", "visit.2"),
        (["/data/t1.nii.gz", "/data/t2.nii.gz"], "t1"),
        (None, "image"),
        ("", "image"),
    ],
)
def test_case_is_the_file_name_without_the_suffix(tmp_path, source, expected):
    run(CaseMetrics(OneClass(), tmp_path), [[case({A: 1}, {A: 1}, name=source)]])
    assert [line["case"] for line in read(tmp_path / "metrics.csv")] == [expected]


def test_cases_of_the_same_file_name_are_numbered_and_summarised_apart(tmp_path):
    run(CaseMetrics(TwoClasses(), tmp_path), [[case(*GOOD, name=f"/{i}/mri.h5")] for i in range(3)])
    assert [line["case"] for line in read(tmp_path / "metrics.csv")][::2] == ["mri", "mri-2", "mri-3"]
    assert pick(read(tmp_path / "metrics_summary.csv"), "all", "dice")["n"] == "3"


def test_summary_is_logged_as_a_table(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(CaseMetrics(TwoClasses(), tmp_path, class_names=["spleen", "liver"]), [[case(*GOOD)], [case(*BAD)]])
    assert "metrics of 2 cases" in caplog.text
    lines = [line.split() for line in caplog.text.splitlines()]
    assert ["class", *METRIC_NAMES, "empty"] in lines
    (liver,) = [line for line in lines if line[:1] == ["liver"]]
    assert liver[1:5] == ["0.5000", "±", "0.7071", "(2)"] and liver[9:11] == ["0.0000", "(1)"] and liver[-1] == "1"


def test_no_case_at_all_leaves_the_headers_and_a_nan(tmp_path):
    engine = run(CaseMetrics(OneClass(), tmp_path), [[]])
    assert read(tmp_path / "metrics.csv") == read(tmp_path / "metrics_summary.csv") == []
    assert math.isnan(engine.state.metrics["test_mean_dice"])


def test_an_empty_reference_is_no_empty_prediction(tmp_path):
    run(CaseMetrics(OneClass(), tmp_path), [[case({A: 1}, {}), case({}, {}), case({}, {A: 1})]])
    line = pick(read(tmp_path / "metrics_summary.csv"), "1", "dice")
    assert line["empty_predictions"] == "1"
    assert float(line["mean"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("names", [["liver"], ["liver", "liver"], ["liver", "all"]])
def test_unusable_class_names_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match="class_names must be 2 different names, none of them 'all', got .*liver"):
        CaseMetrics(TwoClasses(), tmp_path, class_names=names)
