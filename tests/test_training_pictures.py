"""Tests of the pictures of a training, its validation log, its page and its description, on real runs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, small
from matplotlib.image import imread
from monai.bundle import ConfigParser

from scripts.data import LabelCoding
from scripts.methods import Objective
from scripts.methods.dbisl import unanimity_mask
from scripts.pictures.crops import crops_figure
from scripts.training import RunDescription, RunState, run_or_resume
from scripts.training.pictures import crops_of, drawn_heads
from scripts.workflow import Workflow

TRAIN = "configs/train.json"
SETTINGS = {"max_iterations": 5, "epoch_length": 1, "num_epochs": 5, "val_interval": 2, "checkpoint_interval": 2}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """Output folder, workflow and trainer of a run with a picture every two iterations."""
    from monai.utils import set_determinism

    output = tmp_path_factory.mktemp("run")
    (output / "pictures").mkdir()
    (output / "pictures" / "iteration_00000900.png").write_bytes(b"of a former run")
    overrides = small(tiny, output, **SETTINGS, picture_interval=2)
    bundle = Workflow([str(ROOT / TRAIN)], run_id="training", logging_file=False, bundle_root=str(ROOT), **overrides)
    bundle.initialize()
    bundle.run()
    yield SimpleNamespace(output=output, bundle=bundle, trainer=bundle.parser.get_parsed_content("train#trainer"))
    set_determinism(seed=None)


# --- the run's own files ---


def test_pictures_are_written_at_the_interval_and_those_of_a_former_run_are_gone(run):
    pictures = sorted((run.output / "pictures").iterdir())
    assert [path.name for path in pictures] == ["iteration_00000002.png", "iteration_00000004.png"]
    assert imread(pictures[0]).std() > 0.1


def test_pictures_change_no_weight(run, workflow, tiny, tmp_path):
    plain = workflow(TRAIN, **small(tiny, tmp_path, **SETTINGS))
    plain.initialize()
    plain.run()
    assert not (tmp_path / "pictures").exists()
    for folder in (run.output, tmp_path):
        assert (folder / "validation_log.csv").is_file()
    with_pictures, without = (
        torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (run.output, tmp_path)
    )
    assert all(torch.equal(with_pictures[name], without[name]) for name in without)


def test_validation_log_has_a_row_for_every_validation(run):
    log = rows(run.output / "validation_log.csv")
    assert [(row["iteration"], row["epoch"]) for row in log] == [("2", "2"), ("4", "4")]
    evaluator = run.bundle.parser.get_parsed_content("validate#evaluator")
    assert float(log[-1]["val_mean_dice"]) == pytest.approx(float(evaluator.state.metrics["val_mean_dice"]))


def test_share_of_unanimous_voxels_is_logged(run):
    (output,) = run.trainer.state.output
    logits, distance = (
        torch.stack([output["pred"][f"{kind}_{decoder}"] for decoder in ("phi", "psi")])
        for kind in ("logits", "distance")
    )
    inside = torch.cat([logits > 0, distance < 0])  # (4 heads, B, ...): unanimous where 0 or all 4 are inside
    votes = inside.sum(0)
    share = ((votes == 0) | (votes == 4)).double().mean().item()
    assert 0 <= share <= 1
    assert float(rows(run.output / "training_log.csv")[-1]["unanimous_share"]) == pytest.approx(share, abs=1e-6)


def test_share_is_empty_without_pseudo_supervision(workflow, tiny, tmp_path):
    ablation = "configs/ablations/without_pseudo_supervision.json"
    bundle = workflow(TRAIN, ablation, **small(tiny, tmp_path, max_iterations=1, val_interval=9))
    bundle.initialize()
    bundle.run()
    assert rows(tmp_path / "training_log.csv")[0]["unanimous_share"] == ""


# --- the page ---


def test_page_of_the_run_shows_curves_pictures_environment_and_config_and_runs_no_more(run):
    text = (run.output / "run.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", text) == ["Curves", "Pictures", "Command and environment", "Config"]
    assert "DBiSLObjective, DualTaskVNet, iteration 5 of 5 after " in text and "last val_mean_dice 0." in text
    assert text.count("<img ") == 2 and "labeled: cases: 3; digest: " in text
    assert 'http-equiv="refresh"' not in text and "src=" not in text.replace('src="data:image/png;base64,', "")
    titles = re.findall("<figcaption><b>(.*?)</b>", text)
    assert titles[:3] == ["validation", "loss", "supervised_segmentation"] and "unanimous_share" in titles


# --- what is drawn ---


def test_crops_are_the_first_labeled_and_the_first_unlabeled_one_with_all_heads(run):
    labeled, unlabeled = crops_of(run.trainer)
    (output,) = run.trainer.state.output
    assert (labeled.title, unlabeled.title) == ("labeled", "unlabeled")
    for crop, index in ((labeled, 0), (unlabeled, 2)):
        heads = {name: head[index, 0].detach() for name, head in output["pred"].items()}
        assert np.array_equal(crop.image, output["image"][index, 0].numpy())
        probability = torch.stack([heads["logits_phi"], heads["logits_psi"]]).sigmoid()
        distance = torch.stack([heads["distance_phi"], heads["distance_psi"]])
        assert list(crop.probabilities) == ["segmentation phi", "segmentation psi"]
        assert list(crop.distances) == ["distance phi", "distance psi"]
        np.testing.assert_allclose(list(crop.probabilities.values()), probability)
        np.testing.assert_array_equal(list(crop.distances.values()), distance)
        np.testing.assert_allclose(crop.pseudo_label, probability.mean(0))
        np.testing.assert_array_equal(crop.unanimous, unanimity_mask(probability, distance))
    assert np.array_equal(labeled.reference, output["label"]["label"][0, 0] > 0) and unlabeled.reference is None


def test_figure_has_a_panel_for_the_image_every_head_unanimity_and_pseudo_label(run):
    crops = crops_of(run.trainer)
    titles = [axes.get_title() for axes in crops_figure(crops, title="").axes if axes.get_title()]
    assert len(titles) == 2 * 7
    assert "not unanimous: " in crops_figure(crops, title="").get_supxlabel()
    share = 100 * crops[0].unanimous.mean()
    assert titles[1:7] == [
        *("segmentation phi", "segmentation psi", "distance phi", "distance psi"),
        *(f"unanimous: {share:.1f} % of the crop", "pseudo-label"),
    ]


def test_softmax_heads_show_their_foreground_and_features_are_left_out():
    logits = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, 2, 2, 2)
    probabilities, distances = drawn_heads({"logits": logits, "features_a": torch.zeros(8, 2, 2, 2)}, 2)
    assert list(probabilities) == ["segmentation"] and distances == {}
    total = np.exp([1, 2, 3]).sum()
    np.testing.assert_allclose(probabilities["segmentation"][:, 0, 0, 0], np.exp([2, 3]) / total, rtol=1e-6)


def test_other_methods_and_several_classes_have_a_row_for_each_class():
    objective = Objective(LabelCoding(2))
    label = torch.zeros(1, 1, 4, 4, 4)
    label[0, 0, :2, :2] = 2
    image = torch.rand(2, 1, 4, 4, 4)
    output = {"image": image, "label": {"image": image, "label": label}}
    output["pred"] = {"logits": torch.randn(2, 2, 4, 4, 4)}
    engine = SimpleNamespace(state=SimpleNamespace(output=[output]), objective=objective)
    assert [crop.title for crop in crops_of(engine, ["left", "right"])][:2] == ["labeled, left", "labeled, right"]
    crops = crops_of(engine)
    assert [crop.title for crop in crops] == [f"{kind}, class {c}" for kind in ("labeled", "unlabeled") for c in (1, 2)]
    assert [int(crop.reference.sum()) for crop in crops[:2]] == [0, 16]
    assert crops[0].unanimous is None
    figure = crops_figure(crops, title="")
    assert len([axes for axes in figure.axes if axes.get_title()]) == 4 * 2
    assert "segmentation at 1/2" in figure.get_supxlabel() and "unanimous" not in figure.get_supxlabel()


def test_a_picture_that_cannot_be_made_does_not_stop_the_training(workflow, tiny, tmp_path, caplog):
    (tmp_path / "pictures").write_text("a file where a folder is to be")
    bundle = workflow(TRAIN, **small(tiny, tmp_path, max_iterations=1, val_interval=9, picture_interval=1))
    bundle.initialize()
    bundle.run()
    assert "no picture of iteration 1; training goes on" in caplog.text
    assert (tmp_path / "models" / "model.pt").is_file()


# --- run.json ---


def test_description_holds_the_merged_config_and_the_environment(run):
    about = json.loads((run.output / "run.json").read_text())
    (start,) = about["starts"]
    assert start["torch"] == torch.__version__ and start["git_commit"] and start["command"] and start["time"]
    assert {name: found["cases"] for name, found in start["data"].items()} == {
        "labeled": 3,
        "unlabeled": 3,
        "pseudo_labeled": 0,
        "validation": 1,
    }
    assert about["config"]["max_iterations"] == 5 and about["config"]["num_epochs"] == 5
    assert about["config"]["objective"]["_target_"] == "scripts.methods.DBiSLObjective"
    assert about["config"]["lr_scheduler"]["optimizer"] == "@optimizer"
    parser = ConfigParser(about["config"])  # it is a config itself
    assert parser.get_parsed_content("checkpoint_interval") == 2
    assert type(parser.get_parsed_content("objective")).__name__ == "DBiSLObjective"


def description(folder: Path, *, config: dict | None = None, cases: Sequence[dict] = ()) -> RunDescription:
    made = RunDescription(folder, device="cpu", data={"labeled": cases})
    made.config = config
    return made


class Trainer:
    """As much of a trainer as a start needs."""

    scaler = None

    def __init__(self, iteration: int = 0) -> None:
        self.state = SimpleNamespace(iteration=iteration, epoch=0, epoch_length=10, max_epochs=1)

    def run(self) -> None:
        pass


def start(folder: Path, *, mode: str = "auto", seed: int = 0, save: int = 0, **about) -> dict:
    """Starts or continues a run that is then saved at iteration ``save``, and returns its run.json."""
    evaluator = SimpleNamespace(state=SimpleNamespace(best_metric=0, best_metric_epoch=0))
    state = RunState(folder / "checkpoints", {}, evaluator, {"seed": seed})
    run_or_resume(Trainer(), state, mode, description=description(folder, **about))
    if save:
        state.save(Trainer(save))
    return json.loads((folder / "run.json").read_text())


def test_a_run_that_continues_adds_its_start_and_one_that_begins_does_not(tmp_path):
    assert len(start(tmp_path, save=5)["starts"]) == 1
    assert len(start(tmp_path)["starts"]) == 2
    assert len(start(tmp_path, mode="never")["starts"]) == 1


def test_what_was_not_run_is_not_described(tmp_path):
    made = start(tmp_path, save=5, config={"seed": 0})
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        start(tmp_path, seed=1, config={"seed": 1})
    assert json.loads((tmp_path / "run.json").read_text()) == made
    start(tmp_path, save=10, config={"seed": 0})
    made = json.loads((tmp_path / "run.json").read_text())
    assert start(tmp_path, config={"lambda_weight": 2}) == made  # finished


def test_what_has_changed_since_the_last_start_is_said(tmp_path, caplog):
    image = tmp_path / "image.nii"
    image.write_bytes(b"1")
    about = {"config": {"about": "a", "a": {"b": 1, "c": [1, 2]}, "d": 1.5}, "cases": [{"image": image}]}
    start(tmp_path, save=5, **about)
    start(tmp_path, **about)
    assert caplog.text == ""
    image.write_bytes(b"2")
    start(tmp_path, **{**about, "config": {"about": "z", "a": {"b": 2, "c": [1, 2]}, "e": 60 * "x"}})
    (said,) = caplog.messages
    assert 'a#b was 1 and is 2; d was 1.5 and is null; e was null and is "xxx' in said and "xxx.... " in said
    assert "environment#data#labeled#digest was" in said and "a#c" not in said and "about" not in said
    assert "give --resume never" in said


def test_what_may_change_freely_is_not_named(tmp_path, caplog):
    start(tmp_path, save=5, config={"log_interval": 1, "output_dir": "a", "amp": False})
    start(tmp_path, config={"log_interval": 2, "output_dir": "b", "amp": True})
    assert "amp was false and is true" in caplog.text
    assert "log_interval" not in caplog.text and "output_dir" not in caplog.text


def test_of_many_changes_some_are_named(tmp_path, caplog):
    start(tmp_path, save=5, config={f"id_{number:02}": 0 for number in range(20)})
    start(tmp_path, config={f"id_{number:02}": 1 for number in range(20)})
    assert "id_11 was 0 and is 1; and 8 more" in caplog.text and "id_12" not in caplog.text
