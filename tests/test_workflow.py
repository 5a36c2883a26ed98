"""Tests of scripts/workflow.py: both commands have the same checks, and parts that cannot be made are named."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch
from conftest import ROOT, bundle_command, run_bundle, run_process, small
from monai.bundle import ConfigWorkflow

from scripts.errors import UserError
from scripts.workflow import SettingError, Workflow, take_over

TRAIN = "configs/train.json"
RUNNER = "/somewhere/monai/bundle/__main__.py"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def made(*files: str, run_id: str = "training", **overrides: object) -> Workflow:
    return Workflow([TRAIN, *files], run_id=run_id, logging_file=False, **overrides)


# --- overrides ---


def test_false_of_the_command_line_is_false_wherever_it_goes(tiny, tmp_path):
    """Fire reads ``false`` as a text."""
    overrides = {"objective#r2s_cross_entropy": "false", "segmentation_to_distance#detach_extrema": "FALSE"}
    workflow = made(**small(tiny, tmp_path, amp="false", spacing="none", **overrides))
    objective = workflow.parser.get_parsed_content("objective")
    assert objective.r2s_cross_entropy is False and objective.segmentation_to_distance.detach_extrema is False
    assert workflow.parser.get_parsed_content("train#trainer").amp is False
    assert workflow.parser.get_parsed_content("spacing") is None


def test_override_of_another_method_and_word_left_over_end_both_ways_of_running_alike(tiny, tmp_path):
    files = f"['{TRAIN}','configs/methods/supervised.json']"
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files]
    for more, said in ((["--lambda_weight", "2"], "lambda_weight would have no effect"), (["--seed", "1", "x"], "'x'")):
        finished = run_process([*command, "--output_dir", str(tmp_path / "out"), *more])
        assert finished.returncode == 1 and "Traceback" not in finished.stderr
        assert said in finished.stderr.splitlines()[-1] and not (tmp_path / "out").exists()


def test_path_with_characters_of_the_config_language_is_the_folder_of_the_run(tiny, tmp_path):
    output = tmp_path / "it's #1 @home"
    finished = run_bundle("training", TRAIN, **{**small(tiny, output), "ckpt_dir": str(output / "models")})
    assert finished.returncode == 0, finished.stderr
    assert {"run.json", "training_log.csv", "models"} <= set(os.listdir(output)) and len(os.listdir(tmp_path)) == 1
    assert (output / "models" / "model.pt").is_file()


def test_names_in_other_scripts_are_written_and_read_whatever_the_locale(tiny, tmp_path):
    overrides = small(tiny, tmp_path / "out", class_names=["心房"])
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    finished = run_process(bundle_command("training", TRAIN, **overrides), **environment)
    assert finished.returncode == 0, finished.stderr
    assert json.loads((tmp_path / "out/models/model.json").read_text(encoding="utf-8"))["class_names"] == ["心房"]


def test_folder_that_cannot_be_written_is_refused_before_the_training(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    workflow = made(**{**small(tiny, tmp_path / "out"), "ckpt_dir": str(tmp_path / "file" / "models")})
    with pytest.raises(UserError, match="ckpt_dir .* cannot be written"):
        workflow.initialize()


def test_weights_go_beside_the_logs_unless_the_config_says_where(tmp_path):
    assert made(output_dir="out").parser.get_parsed_content("ckpt_dir") == "out/models"
    assert made(output_dir="out", ckpt_dir="mine").parser.get_parsed_content("ckpt_dir") == "mine"
    client = ConfigWorkflow([TRAIN], run_id="run", logging_file=False, output_dir="out")
    assert client.parser.get_parsed_content("ckpt_dir") == "./models"  # a client trains the bundle's own model


def test_merged_config_is_what_files_and_overrides_came_to(tiny, tmp_path):
    workflow = made("configs/methods/dtc.json", **small(tiny, tmp_path))
    config = workflow.parser.get_parsed_content("merged_config")
    assert config["max_iterations"] == 4 and config["objective"]["_target_"] == "scripts.methods.DTCObjective"
    again = Workflow(json.loads(json.dumps(dict(config), default=str)), run_id="training", logging_file=False)
    assert again.parser.get_parsed_content("merged_config")["max_iterations"] == 4


@pytest.mark.parametrize("name", ["objective#wieghts#pseudo", "train#handlers#99#interval", "seed#deep#deeper"])
def test_override_misspelt_in_the_middle_of_its_id_is_refused(name):
    with pytest.raises(UserError, match="wieghts|#99#|#deep#"):
        made(**{name: 1})


# --- parts that cannot be made ---


@pytest.mark.parametrize(
    "settings, part, reason",
    [
        ({"learning_rate": -1}, "optimizer cannot be made of learning_rate -1", "Invalid learning rate"),
        (
            {"foreground_crops": 2},
            "train#crop_transforms#2 cannot be made of crop_size [16, 16, 16], foreground_crops 2",
            "pos and neg must be nonnegative, got pos=2 neg=-1",
        ),
    ],
)
def test_setting_that_a_part_cannot_be_made_of_is_named_with_the_part(tiny, tmp_path, settings, part, reason):
    workflow = made(**small(tiny, tmp_path, run_preflight=False, **settings))
    workflow.initialize()
    with pytest.raises(SettingError) as caught:
        workflow.run()
    assert str(caught.value).startswith(f"{part}: {reason}") and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("network", ["$1 / 0", "$torch.zeros(2).view(3)"])
def test_part_that_fails_otherwise_keeps_its_own_error(tiny, tmp_path, network):
    workflow = made(**small(tiny, tmp_path, run_preflight=False, network=network))
    workflow.initialize()
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert not isinstance(caught.value, UserError)


def test_failure_of_the_run_itself_is_no_matter_of_the_settings(tmp_path):
    workflow = Workflow({"number": 3, "run": ["$len(@number)"]}, logging_file=False)
    workflow.initialize()
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert isinstance(caught.value.__cause__, TypeError) and not isinstance(caught.value, UserError)


# --- MONAI's own command ---


@pytest.mark.parametrize(
    "argv",
    [["pytest", "run", "--typo", "1"], [RUNNER, "ckpt_export", "--typo", "1"], ["client.py"], [""]],
    ids=["program", "export", "client", "interpreter"],
)
def test_other_programs_are_left_alone(argv):
    take_over(argv)


def test_a_client_may_override_what_it_likes(workflow, tiny, tmp_path):
    bundle = workflow(TRAIN, **small(tiny, tmp_path, an_id_of_the_client=1))
    bundle.initialize()
    bundle.run()
    assert (tmp_path / "models" / "model.pt").is_file()


def test_command_is_run_once_and_ends_the_process(tiny, tmp_path):
    argv = [RUNNER, *bundle_command("training", TRAIN, **small(tiny, tmp_path / "out"))[3:]]
    with pytest.raises(SystemExit) as ended:
        take_over(argv)
    assert ended.value.code == 0
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["starts"]) == 1


@pytest.mark.parametrize("path", ["train", "evaluate", "inference", "preflight"])
def test_every_list_that_the_command_line_runs_hands_over_first(path):
    config = json.loads((ROOT / "configs" / f"{path}.json").read_text())
    lists = [config[name] for name in ("training", "evaluation", "inference", "preflight", "run") if name in config]
    lists = [steps for steps in lists if isinstance(steps, list)]
    assert lists and all(steps[0] == {"_target_": "scripts.workflow.take_over"} for steps in lists)


def test_preflight_of_settings_that_it_does_not_look_at_is_refused():
    with pytest.raises(UserError, match="num_labeled.* would have no effect"):
        Workflow(["configs/preflight.json", "configs/data/hippocampus.json"], run_id="preflight", logging_file=False)


def test_shipped_settings_are_those_of_the_shipped_weights():
    """Inference.json repeats them for clients that read it only."""
    trained = json.loads((ROOT / "models" / "model.json").read_text())
    inference = json.loads((ROOT / "configs" / "inference.json").read_text())
    defaults = {name: inference[name] for name in trained if name != "network_def"}
    assert defaults == {name: value for name, value in trained.items() if name != "network_def"}
    assert torch.load(ROOT / "models" / "model.pt", weights_only=True)
