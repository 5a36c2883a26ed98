"""Tests of scripts/setting_checks.py: ids that are not there or without effect, and values that an id cannot have."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import ROOT, run_bundle, small
from monai.bundle import ConfigComponent

from scripts.errors import UserError
from scripts.overrides import config_files, load_files, read_command, typed
from scripts.setting_checks import (
    UnknownIdError,
    arguments_of,
    check_names,
    check_numbers,
    check_used,
    check_window,
    used_ids,
)

TRAIN, INFERENCE = "configs/train.json", "configs/inference.json"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def check(*arguments: str, files: object = TRAIN) -> None:
    """Checks names and window of a command line as the workflow does."""
    options = read_command(["training", "--config_file", str(files), *arguments])
    paths = config_files(options.pop("config_file"))
    config = load_files(paths)
    overrides = {name: typed(value) for name, value in options.items() if name != "run_id"}
    check_names(overrides, config, paths)
    check_window({**config, **overrides}.get("intensity_window"))


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
        check(f"--{override}", "5")


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
    with pytest.raises(UnknownIdError, match=f"is no argument of its class: did you mean {nearest}[?]"):
        check(f"--{override}", "5")


def test_a_component_without_arguments_has_those_of_every_component(tmp_path):
    (tmp_path / "own.json").write_text('{"step": {"_target_": "scripts.ranks.end_processes"}}')
    files = [TRAIN, str(tmp_path / "own.json")]
    check("--step#_disabled_", "true", files=files)
    with pytest.raises(UnknownIdError, match="step#rank is no id"):
        check("--step#rank", "1", files=files)


def test_an_argument_that_resembles_none_is_answered_with_those_that_there_are():
    with pytest.raises(UnknownIdError, match="network_def#act .*base_filters, dropout, in_channels, norm"):
        check("--network_def#act", "PRELU")


@pytest.mark.parametrize("window", ["[-125,275,3]", "[275,-125]", "[5]", "5", "[a,b]", "[5,5]"])
def test_intensity_window_that_is_not_two_numbers_in_order_is_refused(window):
    with pytest.raises(UserError, match="^intensity_window is .*; it must be two numbers, the lower first"):
        check("--intensity_window", window)


def test_intensity_window_of_a_file_is_checked_unless_the_command_line_has_another(tmp_path):
    (tmp_path / "plan.json").write_text('{"intensity_window": [-125, 275, 3]}')
    files = [TRAIN, str(tmp_path / "plan.json")]
    with pytest.raises(UserError, match=r"^intensity_window is \[-125, 275, 3\]"):
        check(files=files)
    for window in ("[-125,275]", "[-125.5,275]", "None", "$[0, @num_classes]"):
        check("--intensity_window", window, files=files)


@pytest.mark.parametrize(
    "name, value",
    [
        ("patch_size", 20),
        ("patch_size", "16 16 16"),
        ("patch_size", [16, 16]),
        ("spacing", [1, 1, "a"]),
        ("max_iterations", "many"),
        ("seed", True),
    ],
)
def test_number_or_list_of_another_kind_is_refused_with_the_right_form(name, value):
    with pytest.raises(UserError) as caught:
        check_numbers({name: value})
    assert str(caught.value).startswith(f"{name} is {value!r};")
    check_numbers({"patch_size": [16, "$8 * 2", 16], "spacing": None, "seed": "$1", "tolerance": "any"})


def test_nothing_near_is_said_without_a_guess():
    with pytest.raises(UnknownIdError, match="xyzzy is no id of .*: the ids are those of the files"):
        check("--xyzzy=1")


def test_misspelt_entry_of_an_args_file_is_refused_and_the_command_line_wins_over_it(tmp_path):
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({"run_id": "training", "config_file": [TRAIN], "num_labelled": 8, "seed": 3}))
    options = read_command(["--args_file", str(preset), "--seed", "1"])
    assert options == {"run_id": "training", "config_file": [TRAIN], "num_labelled": 8, "seed": 1}
    with pytest.raises(UnknownIdError, match="num_labelled is no id of .*: did you mean num_labeled"):
        check_names({"num_labelled": 8}, load_files([TRAIN]), [TRAIN])


def test_an_id_of_another_config_is_unknown():
    check("--max_iterations", "5")
    with pytest.raises(UnknownIdError, match="max_iterations"):
        check("--max_iterations", "5", files=INFERENCE)


def test_the_command_ends_in_one_line_before_anything_is_done(tiny, tmp_path):
    finished = run_bundle("training", TRAIN, **small(tiny, tmp_path / "out", max_iteration=5))
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "\nerror: max_iteration is no id" in finished.stderr
    assert "did you mean max_iterations?" in finished.stderr
    assert not (tmp_path / "out").exists()


# --- what is not ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max_iterations", "5", "--train#dataset#cache_rate", "0", "--train::trainer::amp", "True"],
        ["--objective#weights#pseudo", "0", "--train#handlers#0#_disabled_", "True", "--network_def#dropout=0.3"],
        ["--amp", "--noamp", "--num-workers", "2", "--stride", "[8, 8, 8]", "--lambda_weight", "-1"],
        ["--experiment_name", "a", "--run_name", "b", "--tracking_uri", "sqlite:///a"],
        ["--optimizer#nesterov", "True", "--train#dataset#_disabled_", "False", "--train#trainer#anything", "1"],
        ["--optimizer#_target_", "torch.optim.AdamW", "--optimizer#fused", "True", "--optimizer#betas", "[0.9, 0.99]"],
        ["--optimizer", "{'_target_': 'torch.optim.AdamW'}", "--optimizer#amsgrad", "True"],
        ["--train", "{}", "--train#another", "1"],
        ["--objective#weights#another_term", "1", "--train#handlers#0#_disabled_", "True"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_overrides_that_exist_pass(arguments):
    check(*arguments)


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
    check("--discriminator#levels", "3", "--train#extra", "2", files=files)
    with pytest.raises(UnknownIdError, match="did you mean discriminator"):
        check("--discriminater#levels", "3", files=files)


def test_every_preset_passes():
    for preset in sorted((ROOT / "configs" / "presets").glob("*.json")):
        if "inference" not in preset.stem:  # reads the model.json of a demo that has run
            options = read_command(["--args_file", str(preset)])
            paths, run_id = config_files(options.pop("config_file")), options.pop("run_id")
            check_names(options, load_files(paths), paths)
            if run_id == "training":
                check_used(options, load_files(paths), [run_id, "initialize"])


# --- what would have no effect ---


def used(name: str, *files: str) -> None:
    check_used([name], load_files([TRAIN, *files]), ["training", "initialize", "finalize"])


@pytest.mark.parametrize(
    "name, files",
    [
        ("lambda_weight", []),
        ("objective#weights#pseudo", []),
        ("segmentation_to_distance#factor", []),
        ("train#dataset#cache_rate", []),
        ("validate::inferer::overlap", []),
        ("surface_tolerance", []),
        ("train", []),
    ],
)
def test_override_that_the_training_refers_to_passes(name, files):
    used(name, *files)


@pytest.mark.parametrize("name", ["lambda_weight", "segmentation_to_distance#factor", "distance_to_segmentation"])
def test_override_that_only_another_method_uses_is_refused(name):
    with pytest.raises(UnknownIdError, match=f"{name} would have no effect"):
        used(name, "configs/methods/supervised.json")


def test_used_ids_follow_references_expressions_and_macros():
    config = {"a": ["$@b + 1", {"x": "@c#d"}], "b": "%e", "c": {"d": 1, "f": 2}, "e": 3, "g": "@b", "h": "text with @g"}
    assert sorted(used_ids(config, ["a"])) == [["a"], ["b"], ["c", "d"], ["e"]]
