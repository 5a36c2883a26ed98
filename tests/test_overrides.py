"""Tests of scripts/overrides.py: a misspelt override is an error that names the nearest id, and nothing else is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import fire
import pytest
from conftest import ROOT, run_bundle, small
from monai.bundle import ConfigComponent

from scripts.overrides import UnknownIdError, WindowError, arguments_of, check_overrides, flag_values

TRAIN, INFERENCE = "configs/train.json", "configs/inference.json"
RUNNER = "/somewhere/monai/bundle/__main__.py"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def command(*arguments: str, files: object = TRAIN, run_id: str = "training") -> list[str]:
    return [RUNNER, "run", run_id, "--config_file", str(files), *arguments]


# --- what is refused ---


@pytest.mark.parametrize(
    "override, nearest",
    [
        ("max_iteration", "max_iterations"),
        ("learningrate", "learning_rate"),
        ("train#trainr", "train#trainer"),
        ("train::datset::cache_rate", "train#dataset"),
        ("validate#handler", "validate#handlers"),
        ("objectiv#unanimity", "objective"),
    ],
)
def test_misspelt_override_names_the_nearest_id(override, nearest):
    with pytest.raises(UnknownIdError, match=f"configs/train.json: did you mean {nearest}[?]"):
        check_overrides(command(f"--{override}", "5"))


@pytest.mark.parametrize(
    "override, nearest",
    [
        ("train#dataset#cache_rat", "train#dataset#cache_rate"),
        ("optimizer#momentm", "optimizer#momentum"),
        ("objective::unanimty", "objective#unanimity"),
        ("validate#inferer#sw_batchsize", "validate#inferer#sw_batch_size"),
    ],
)
def test_misspelt_argument_of_a_component_names_the_nearest_one(override, nearest):
    with pytest.raises(
        UnknownIdError, match=f"in the command line is no argument of its class: did you mean {nearest}[?]"
    ):
        check_overrides(command(f"--{override}", "5"))


def test_a_component_without_arguments_has_those_of_every_component():
    check_overrides(command("--is_not_rank0#_disabled_", "true"))
    with pytest.raises(UnknownIdError, match="is_not_rank0#rank in the command line"):
        check_overrides(command("--is_not_rank0#rank", "1"))


def test_an_argument_that_resembles_none_is_answered_with_those_that_there_are():
    with pytest.raises(UnknownIdError, match="network_def#act .*there are base_filters, dropout, in_channels, norm"):
        check_overrides(command("--network_def#act", "PRELU"))


@pytest.mark.parametrize("window", ["[-125,275,3]", "[275,-125]", "[5]", "5", "[a,b]", "[5,5]", "null"])
def test_intensity_window_that_is_not_two_numbers_in_order_is_refused(window):
    with pytest.raises(WindowError, match="^intensity_window is .*; it must be two numbers, the lower first"):
        check_overrides(command("--intensity_window", window))


def test_intensity_window_of_a_file_is_checked_unless_the_command_line_has_another(tmp_path):
    (tmp_path / "plan.json").write_text('{"intensity_window": [-125, 275, 3]}')
    files = [TRAIN, str(tmp_path / "plan.json")]
    with pytest.raises(WindowError, match=r"^intensity_window is \[-125, 275, 3\]"):
        check_overrides(command(files=files))
    for window in ("[-125,275]", "[-125.5,275]", "None", "$[0, @num_classes]"):
        check_overrides(command("--intensity_window", window, files=files))


def test_nothing_near_is_said_without_a_guess():
    with pytest.raises(
        UnknownIdError, match="xyzzy in the command line is no id of .*: the ids are those of the files"
    ):
        check_overrides(command("--xyzzy=1"))


def test_misspelt_entry_of_an_args_file_is_named_with_the_file(tmp_path):
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({"run_id": "training", "config_file": [TRAIN], "num_labelled": 8}))
    message = f"num_labelled in {preset} is no id of configs/train.json: did you mean num_labeled"
    with pytest.raises(UnknownIdError, match=message):
        check_overrides([RUNNER, "run", "--args_file", str(preset), "--seed", "1"])


def test_an_id_of_another_config_is_unknown():
    check_overrides(command("--max_iterations", "5"))
    with pytest.raises(UnknownIdError, match="max_iterations"):
        check_overrides(command("--max_iterations", "5", files=INFERENCE, run_id="inference"))


def test_the_command_ends_in_one_line_before_anything_is_done(tiny, tmp_path):
    finished = run_bundle("training", TRAIN, **small(tiny, tmp_path / "out", max_iteration=5))
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "\nerror: max_iteration in the command line is no id" in finished.stderr
    assert "did you mean max_iterations?" in finished.stderr
    assert not (tmp_path / "out").exists()


# --- what is not ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max_iterations", "5", "--train#dataset#cache_rate", "0", "--train::trainer::amp", "True"],
        ["--objective#weights#pseudo", "0", "--train#handlers#0#_disabled_", "True", "--network_def#dropout=0.3"],
        ["--meta_file", "m.json", "--logging_file", "l.conf", "--init_id", "initialize", "--workflow_type", "train"],
        ["--amp", "--noamp", "--num-workers", "2", "--stride", "[8, 8, 8]", "--lambda_weight", "-1"],
        ["--tracking", "mlflow", "--experiment_name", "a", "--run_name", "b", "--tracking_uri", "sqlite:///a"],
        ["--_meta_#version", "2"],
        ["--optimizer#nesterov", "True", "--train#dataset#_disabled_", "False", "--train#trainer#anything", "1"],
        ["--optimizer#_target_", "torch.optim.AdamW", "--optimizer#fused", "True", "--optimizer#betas", "[0.9, 0.99]"],
        ["--optimizer", "{'_target_': 'torch.optim.AdamW'}", "--optimizer#amsgrad", "True"],
        ["--train", "{}", "--train#another", "1"],
        ["--objective#weights#another_term", "1", "--train#handlers#0#_disabled_", "True"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_overrides_that_exist_pass(arguments):
    check_overrides(command(*arguments))


def components(value: object) -> Iterator[dict]:
    """All components in a nest of a config."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from components(item)


def test_what_the_configs_set_are_arguments_that_their_classes_take():
    checked = 0
    for path in sorted((ROOT / "configs").rglob("*.json")):
        for component in components(json.loads(path.read_text(encoding="utf-8"))):
            taken = arguments_of(component)
            if taken is not None:
                checked += 1
                assert set(component) - ConfigComponent.non_arg_keys <= taken, (path.name, component)
    assert checked > 100


def test_ids_that_files_add_may_be_overridden(tmp_path):
    added = tmp_path / "method.json"
    added.write_text(json.dumps({"discriminator": {"_target_": "x"}, "train#extra": 1}))
    files = [TRAIN, str(added)]
    check_overrides(command("--discriminator#levels", "3", "--train#extra", "2", files=files))
    with pytest.raises(UnknownIdError, match="did you mean discriminator"):
        check_overrides(command("--discriminater#levels", "3", files=files))


def test_every_preset_passes():
    for preset in sorted((ROOT / "configs" / "presets").glob("*.json")):
        if "inference" not in preset.stem:  # reads the model.json of a demo that has run
            check_overrides([RUNNER, "run", "--args_file", str(preset)])


@pytest.mark.parametrize(
    "argv",
    [["pytest", "run", "--typo", "1"], [RUNNER, "ckpt_export", "--typo", "1"], ["client.py"], [""]],
    ids=["program", "export", "client", "interpreter"],
)
def test_other_programs_are_left_alone(argv):
    check_overrides(argv)


def test_a_client_may_override_what_it_likes(workflow, tiny, tmp_path):
    bundle = workflow(TRAIN, run_id="steps", **small(tiny, tmp_path, an_id_of_the_client=1))
    bundle.parser["steps"] = [bundle.parser["training"][1]]
    assert bundle.parser["steps"] == [{"_target_": "scripts.overrides.check_overrides"}]
    bundle.initialize()
    bundle.run()


@pytest.mark.parametrize("path", ["train", "evaluate", "inference", "preflight"])
def test_every_list_that_the_command_line_runs_checks_first(path):
    config = json.loads(Path(f"configs/{path}.json").read_text())
    lists = [config[name] for name in ("training", "evaluation", "inference", "preflight", "run") if name in config]
    lists = [steps for steps in lists if isinstance(steps, list)]
    assert lists
    for steps in lists:
        assert steps[:2] == [
            {"_target_": "scripts.errors.print_briefly"},
            {"_target_": "scripts.overrides.check_overrides"},
        ]


# --- the command line is read as Fire reads it ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["--a", "1", "--b=2", "--c", "[1, 2]", "--d"],
        ["--a", "--nob", "--c", "-1", "--d-e", "x"],
        ["--a#b", "4", "--c::d=x=y", "-e", "5", "-f=6"],
        ["--a", "-0.5", "--nothing", "1", "--b"],
    ],
    ids=str,
)
def test_flags_are_those_that_fire_finds(arguments):
    found = fire.Fire(lambda run_id, **override: override, command=["training", *arguments])
    ours = flag_values(["training", *arguments])
    assert ours.keys() == found.keys()
    assert {name: fire.parser.DefaultParseValue(value) for name, value in ours.items()} == found
