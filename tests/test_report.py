"""Tests of tools/reports/{results,figures,evaluation}.py and their pictures on a small finished evaluation."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import blob, las, oblique, run_process, save
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from scripts.data import DataError, LabelCoding, case_name
from scripts.evaluation import CaseMetrics
from scripts.pictures.html import page
from tools.reports.cases import slices_figure, surfaces_figure
from tools.reports.distribution import distribution_figure
from tools.reports.evaluation import evaluation_parts
from tools.reports.figures import draw_figures
from tools.reports.figures import main as write_figures
from tools.reports.results import EvaluationResults
from tools.reports.run import main as write_report

# How far each prediction is shifted, in voxels: the last case is the best.
SHIFTS = {"far": 5, "near": 2, "middle": 3, "exact": 0}


def evaluate(folder: Path, *, num_classes: int = 2, regions=None, names=None) -> tuple[Path, Path]:
    """A data set and the output folder of an evaluation of it, with shifted references as predictions."""
    data, output = folder / "data", folder / "out"
    coding = LabelCoding(num_classes, regions)
    handler = CaseMetrics(coding, output, class_names=names or ["lower", "<b>upper</b>"][:num_classes])
    entries, batches = [], []
    for number, (case, shift) in enumerate(SHIFTS.items()):
        image, label = blob((24, 22, 20), seed=number, num_classes=2)
        affine = oblique((1.0, 1.2, 2.0)) if number == 0 else las((1.0, 1.2, 2.0))
        entry = {"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz"}
        save(image, affine, data / entry["image"])
        save(label, affine, data / entry["label"])
        pred = np.roll(label, shift, axis=0)
        tensors = [
            MetaTensor(
                torch.from_numpy(a.astype(np.int64))[None],
                affine=torch.from_numpy(affine),
                meta={"filename_or_obj": entry["image"]},
            )
            for a in (pred, label)
        ]
        if regions:
            maps = coding.encode(tensors[0].as_tensor()[None])[0]
            tensors[0] = MetaTensor(maps, meta=tensors[0].meta, affine=tensors[0].affine)
            pred = maps.permute(1, 2, 3, 0).numpy().astype(np.uint8)
        save(pred, affine, output / f"{case}_seg.nii.gz")
        entries.append(entry)
        batches.append([{"pred": tensors[0], "label": tensors[1]}])
    (data / "dataset.json").write_text(json.dumps({"training": [], "test": entries}))
    engine = Engine(lambda _, batch: batch)
    handler.attach(engine)
    engine.run(batches)
    return data, output


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return evaluate(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def results(run) -> EvaluationResults:
    return EvaluationResults(run[1], run[0])


@pytest.fixture(scope="module")
def figures(results) -> dict[str, bytes]:
    return draw_figures(results)


@pytest.fixture(scope="module")
def html(results, figures) -> str:
    return page("A & B", evaluation_parts(results, figures))


# --- results ---


def test_chosen_cases_are_those_of_lowest_middle_and_highest_dice(results):
    assert results.chosen() == {"worst": "far", "median": "middle", "best": "exact"}
    assert results.dice("exact") == 1 > results.dice("near") > results.dice("middle") > results.dice("far")


def test_fewer_than_three_cases_are_shown_once_each(run):
    results = EvaluationResults(run[1], run[0])
    results.cases = ["near", "far"]
    assert results.chosen() == {"worst": "far", "best": "near"}
    results.cases = ["near"]
    assert results.chosen() == {"worst": "near"}


@pytest.mark.parametrize("case", ["far", "near"])
def test_volumes_of_a_case_are_turned_alike_and_give_the_dice_of_the_table(results, case):
    volumes = results.volumes(case)
    assert volumes.reference.shape == volumes.prediction.shape == (2, *volumes.image.shape)
    assert volumes.spacing == pytest.approx((1.0, 1.2, 2.0))
    for channel, name in enumerate(results.classes):
        a, b = volumes.prediction[channel], volumes.reference[channel]
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) == pytest.approx(results.value(case, name, "dice"))
    # Bright inside the object: the image is turned as well.
    assert volumes.image[volumes.reference.any(axis=0)].mean() > volumes.image.mean() + 50


def test_first_axis_runs_to_the_patients_right(results, run):
    stored = nibabel.load(run[0] / "labels" / "near.nii.gz")  # stored towards the left
    assert np.array_equal(results.volumes("near").reference[0], np.asarray(stored.dataobj)[::-1] == 1)


def test_overlapping_regions_are_read_as_maps(tmp_path):
    data, output = evaluate(tmp_path, regions=[[1, 2], [2]], names=["whole", "upper"])
    volumes = EvaluationResults(output, data, regions=[[1, 2], [2]]).volumes("exact")
    assert np.array_equal(volumes.prediction, volumes.reference)
    assert (volumes.reference[0] | volumes.reference[1]).sum() == volumes.reference[0].sum()
    with pytest.raises(DataError, match="for overlapping regions give --regions"):
        EvaluationResults(output, data).volumes("exact")


def test_what_is_missing_is_named(run, tmp_path):
    with pytest.raises(DataError, match=r"metrics\.csv does not exist"):
        EvaluationResults(tmp_path, run[0])
    with pytest.raises(DataError, match="has no case elsewhere with a label"):
        EvaluationResults(run[1], run[0]).paths("elsewhere")
    with pytest.raises(DataError, match="regions has 1 entries"):
        EvaluationResults(run[1], run[0], regions=[[1]])


def partial_evaluation(folder: Path, *, annotated: bool) -> tuple[Path, Path]:
    """An evaluation of whole labels, whose upper half of every label was then made unknown: all of it, or class 2."""
    data, output = evaluate(folder)
    entries = json.loads((data / "dataset.json").read_text())
    for case in entries["test"]:
        if annotated:
            case["annotated"] = [1]
            continue
        path = data / case["label"]
        stored = nibabel.load(path)
        label = np.asarray(stored.dataobj).copy()
        label[:, :, 10:] = 255
        save(label, stored.affine, path)
    (data / "dataset.json").write_text(json.dumps(entries))
    return data, output


def test_volumes_say_where_the_label_knows_a_class(run, results, tmp_path):
    assert results.volumes("exact").known is None
    data, output = partial_evaluation(tmp_path / "voxels", annotated=False)
    volumes = EvaluationResults(output, data, ignore_value=255).volumes("exact")
    assert not volumes.known[:, :, :, 10:].any() and volumes.known[:, :, :, :10].all()
    assert not volumes.reference[:, :, :, 10:].any() and volumes.reference[0, :, :, :10].any()
    with pytest.raises(DataError, match=r"exact.nii.gz has the value 255 and \[0, 1, 2\] are expected"):
        EvaluationResults(output, data).volumes("exact")
    data, output = partial_evaluation(tmp_path / "classes", annotated=True)
    volumes = EvaluationResults(output, data).volumes("exact")
    # Class 1 is known everywhere, class 2 only where it cannot be since class 1 is.
    assert volumes.known[0].all() and np.array_equal(volumes.known[1], volumes.reference[0])
    assert not volumes.reference[1].any()


# --- report ---


class Page(HTMLParser):
    """Collects the rows of every table, the sources of images and whatever else a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: list[str] = []
        self.loaded: list[str] = []
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        self.cell = tag in ("td", "th")
        if self.cell:
            self.rows[-1].append("")
        if tag == "img":
            self.images.append(attrs["src"])
        elif "src" in attrs or tag in ("link", "script", "iframe"):
            self.loaded.append(tag)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data


def test_report_loads_nothing_and_its_pictures_can_be_decoded(html):
    page = Page(html)
    assert page.loaded == [] and "http" not in html and "url(" not in html
    assert len(page.images) == 5  # distribution, three cases, surfaces
    for source in page.images:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.format == "PNG" and np.asarray(picture.convert("L")).std() > 5


def test_report_has_the_figures_of_both_tables_and_escapes_names(html, run):
    page = Page(html)
    assert "<b>upper" not in html and "A &amp; B" in html
    with (run[1] / "metrics_summary.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            row = next(r for r in page.rows if r[:2] == [line["class"], line["metric"]])
            expected = [float(line[key]) for key in ("mean", "std")]
            assert [float(cell) for cell in row[2:4]] == pytest.approx(expected, abs=5e-4)
            assert row[4] == f"{float(line['ci95_low']):.3f} to {float(line['ci95_high']):.3f}"
            assert row[5:] == [line["n"], line["empty_predictions"]]
    cases = [row for row in page.rows if row[0] in SHIFTS]
    assert [row[0] for row in cases] == [case for case in ("far", "middle", "near", "exact") for _ in range(2)]
    assert {row[1] for row in cases} == {"lower", "<b>upper</b>"}
    assert [float(cell) for cell in cases[-1][2:]] == [1, 1, 0, 0, 0, 0, 1]


def test_report_counts_the_cases_that_failed_and_gives_the_reasons_above_the_summary(run, figures, html, tmp_path):
    assert "failed" not in html
    output = Path(shutil.copytree(run[1], tmp_path / "out"))
    with (output / "failures.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("case", "reason"), ("images/lost.nii.gz", "DataError: no <file>, moved"), ("images/b.nii.gz", "OSError")]
        )
    text = page("", evaluation_parts(EvaluationResults(output, run[0]), figures))
    assert "<strong>2 of 6 cases failed</strong>" in text and "<p>4 cases;" in text and "<file>" not in text
    assert [row for row in Page(text).rows if row[0] in ("lost", "b")] == [
        ["lost", "DataError: no <file>, moved"],
        ["b", "OSError"],
    ]
    assert text.index("2 of 6 cases failed") < text.index(">lost<") < text.index("<h3>Summary")


def test_results_of_an_older_version_without_the_new_columns_are_reported_too(tmp_path, figures):
    data, output = evaluate(tmp_path, num_classes=1, names=["all of it"])
    for name, dropped in (
        ("metrics.csv", {"surface_dice", "surface_tolerance_mm", "list"}),
        ("metrics_summary.csv", {"ci95_low", "ci95_high", "list"}),
    ):
        with (output / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        columns = [column for column in rows[0] if column not in dropped]
        with (output / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    old = Page(page("", evaluation_parts(EvaluationResults(output, data), figures)))
    row = next(row for row in old.rows if row[:2] == ["all of it", "dice"])
    assert row[4] == "– to –" and float(row[2]) > 0


@pytest.mark.parametrize("name", ["test", "validation"])
def test_report_says_which_cases_it_is_about_and_takes_their_files(tmp_path, figures, name):
    data, output = evaluate(tmp_path, num_classes=1, names=["one"])
    with (output / "metrics.csv").open(newline="") as file:
        rows = [{**row, "list": name} for row in csv.DictReader(file)]
    with (output / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lists = json.loads((data / "dataset.json").read_text())
    case = lists["test"][0]
    lists["validation"] = [{**case, "label": "of_validation"}]
    lists["test"] = [{**case, "label": "of_test"}, *lists["test"][1:]]
    (data / "dataset.json").write_text(json.dumps(lists))
    results = EvaluationResults(output, data)
    text = page("", evaluation_parts(results, figures))
    assert f"<p>{len(results.cases)} {name} case" in text
    assert ("models may have been chosen" in text) == (name == "validation")
    assert results.paths(case_name(case["image"]))["label"].endswith(f"of_{name}")


def test_figures_differ_between_cases_and_show_reference_and_prediction(figures):
    assert list(figures) == ["distribution", "slices_worst", "slices_median", "slices_best", "surfaces"]
    assert len(set(figures.values())) == 5
    pixels = np.asarray(Image.open(io.BytesIO(figures["slices_worst"])).convert("RGB")).astype(int)
    above_legend = pixels[:-60]
    for colour in ((0xF0, 0xE4, 0x42), (0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9)):
        assert (np.abs(above_legend - colour).max(axis=-1) < 15).sum() > 30


def test_unknown_voxels_are_an_area_and_their_prediction_has_no_surface(run, results, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "tools.reports.cases.render_surfaces", lambda masks, *_, **__: shown.append(masks) or np.ones((2, 2, 3))
    )
    data, output = partial_evaluation(tmp_path, annotated=False)
    partial = EvaluationResults(output, data, ignore_value=255)
    purple = []
    for volumes in (partial.volumes("exact"), results.volumes("exact")):
        figure = slices_figure(volumes, results.classes, title="exact")
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        areas = [axes.images[1].get_array()[..., 3] > 0 for axes in figure.axes if len(axes.images) > 1]
        assert ("not annotated, for one class at least" in legend) is bool(areas)
        purple.append(areas)
        surfaces_figure({"exact": volumes}, results.classes)
    coronal, whole = purple[0][1], purple[1]
    # Rows upwards: known below, unknown above, up to the edge of the picture.
    assert not coronal[0].any() and coronal[-1].all() and whole == []
    reference, prediction, _, whole_prediction = shown
    assert np.array_equal(reference, prediction) and prediction.any()
    assert whole_prediction.sum() > prediction.sum()


def test_distribution_says_how_many_values_are_missing():
    figure = distribution_figure({"hd95_mm": {"liver": [1.0, math.nan, 3.0, math.nan], "spleen": [math.nan] * 4}})
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["liver\n(2 missing)", "spleen\n(4 missing)"]
    points = [collection.get_offsets()[:, 1].tolist() for collection in figure.axes[0].collections]
    assert points == [[1.0, 3.0], []]


# --- commands ---


def test_commands_write_the_figures_and_the_report_and_say_where(run, figures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tools.reports.figures.draw_figures", lambda results: figures)
    monkeypatch.setattr("tools.reports.run.draw_figures", lambda results: figures)
    write_figures(str(run[1]), str(run[0]), figures_dir=str(tmp_path / "new"))
    assert {path.stem: path.read_bytes() for path in (tmp_path / "new").iterdir()} == figures
    write_report(str(run[1]), str(run[0]), title="of a run")
    assert "<h1>of a run</h1>" in (run[1] / "run.html").read_text(encoding="utf-8")
    said = capsys.readouterr().out.split()
    assert said[-1] == str(run[1] / "run.html")
    assert sorted(said[:-1]) == sorted(str(path) for path in (tmp_path / "new").iterdir())


def test_pictures_of_the_heads_are_called_after_case_and_class(tmp_path, monkeypatch):
    data, output = evaluate(tmp_path, names=["left / atrium", "2"])
    monkeypatch.setattr("tools.reports.figures.draw_figures", lambda results: {})
    drawn = []
    monkeypatch.setattr("tools.reports.figures.heads_figure", lambda *_, path, **rest: drawn.append(path.name))
    write_figures(str(output), str(data), model_dir="models")
    names = [f"heads_{which}_{name}.png" for which in ("worst", "median", "best") for name in ("1_left_atrium", "2")]
    assert drawn == names


@pytest.mark.long
def test_command_draws_the_figures_of_a_run_as_a_process(run, tmp_path):
    arguments = ["--output_dir", str(run[1]), "--dataset_dir", str(run[0]), "--figures_dir", str(tmp_path)]
    finished = run_process([sys.executable, "-m", "tools.reports.figures", *arguments])
    assert finished.returncode == 0, finished.stderr
    assert "surfaces.png" in [path.name for path in tmp_path.iterdir()]


@pytest.mark.long
def test_command_for_a_folder_without_an_evaluation_ends_in_one_line(tmp_path):
    finished = run_process([sys.executable, "-m", "tools.reports.run", "--run", str(tmp_path)])
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert re.search(r"\nerror: .*has neither training_log\.csv with a row nor metrics\.csv", finished.stderr)


def test_inference_and_evaluation_work_where_matplotlib_is_not_installed():
    code = (
        "import sys; sys.modules['matplotlib'] = None\nimport scripts.inference, scripts.evaluation, scripts.training"
    )
    finished = run_process([sys.executable, "-c", code])
    assert finished.returncode == 0, finished.stderr
