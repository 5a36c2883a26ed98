"""Tests of scripts/overrides.py: what a command line and its config files say, and the types of values."""

from __future__ import annotations

import pytest
from conftest import ROOT
from monai.bundle import ConfigParser

from scripts.errors import UserError
from scripts.overrides import config_files, literal, load_files, read_command, typed

TRAIN = "configs/train.json"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["training", "--config_file", "a.json", "b.json"], "b.json"),
        (["training", "--spacing", "1", "1", "3"], "1"),
        (["evaluation", "--ckpt_path", "a.pt", "b.pt"], "b.pt"),
        (["--run_id", "training", "infer"], "infer"),
    ],
)
def test_word_that_no_option_takes_is_refused(arguments, word):
    with pytest.raises(UserError, match=f"word {word!r}|word {word} "):
        read_command(arguments)


def test_option_given_twice_is_refused():
    with pytest.raises(UserError, match="--seed is given 2 times"):
        read_command(["training", "--seed", "1", "--lr=2", "--seed=3"])
    assert read_command(["training", "--a#b", "1", "--a#c", "2", "--d", "-1"])["d"] == -1


@pytest.mark.parametrize(
    "given, meant",
    [
        ("false", False),
        ("FALSE", False),
        ("True", True),
        ("null", None),
        ("None", None),
        ("falsehood", "falsehood"),
        (["true", ["null"]], [True, [None]]),
        ({"a": "false", "b": {"c": "none"}, "d": 0}, {"a": False, "b": {"c": None}, "d": 0}),
    ],
)
def test_words_for_truth_and_nothing_are_what_they_mean(given, meant):
    assert typed(given) == meant


def test_list_of_config_files_is_read_however_it_is_written(tmp_path):
    listed = [TRAIN, "configs/methods/dtc.json"]
    for text in (listed, ",".join(listed), f"[{', '.join(listed)}]", str(listed), tuple(listed)):
        assert config_files(text) == listed
    strange = tmp_path / "o'verlay, 1.json"
    strange.write_text("{}")
    assert config_files(str(strange)) == [str(strange)]
    assert config_files([TRAIN, str(strange)]) == [TRAIN, str(strange)]


def test_files_in_an_order_that_has_no_effect_or_is_incomplete_are_refused(tmp_path):
    with pytest.raises(UserError, match=f"put {TRAIN} first"):
        config_files(["configs/data/hippocampus.json", TRAIN])
    with pytest.raises(UserError, match="does not exist"):
        config_files([TRAIN, "configs/methods/none.json"])
    with pytest.raises(UserError, match="objective#weights"):
        load_files(["configs/ablations/without_consistency.json"])
    (tmp_path / "cut.json").write_text("{")
    with pytest.raises(UserError, match="cut.json cannot be read"):
        load_files([str(tmp_path / "cut.json")])


def test_sharp_sign_of_a_text_stays_one_and_expressions_stay_expressions():
    config = {"name": "a#1 @ 'b'", "list": ["#", 1], "e": "$len('#')", "r": "@name", "about": "#"}
    parser = ConfigParser(literal(config))
    assert parser.get_parsed_content("name") == parser.get_parsed_content("r") == "a#1 @ 'b'"
    assert parser.get_parsed_content("list") == ["#", 1] and literal(config)["e"] == config["e"]
