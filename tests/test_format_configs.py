"""The form of the JSON configs: what fits on a line is on one, and nothing but the form changes."""

import json

import pytest

from tools.format_configs import WIDTH, config_files, formatted

CONFIG = {
    "about": 'äé "quoted"',
    "sizes": [112, 112, 80],
    "empty": {},
    "group": {"part": {"_target_": "Thing", "keys": ["image", "label"]}, "text": "x" * 90},
    "list": [{"_target_": "A"}, "$" + "y" * 110],
}


def test_short_values_are_on_one_line_and_the_outermost_map_never_is():
    assert formatted({"a": [1, 2], "b": {"c": None}}) == '{\n    "a": [1, 2],\n    "b": {"c": null}\n}'


def test_a_value_breaks_exactly_when_its_line_would_pass_the_width():
    name = "n" * 20
    fits = WIDTH - len(f'    "{name}": [""],')
    assert len(formatted({name: ["x" * fits]}).splitlines()) == 3
    assert len(formatted({name: ["x" * (fits + 1)]}).splitlines()) == 5


@pytest.mark.parametrize("value", [CONFIG, {"a": CONFIG}, {}])
def test_the_content_stays(value):
    assert json.loads(formatted(value)) == value


def test_formatting_twice_changes_nothing():
    once = formatted(CONFIG)
    assert formatted(json.loads(once)) == once


def test_every_config_of_the_project_is_formatted():
    others = [
        str(p) for p in config_files() if p.read_text("utf-8") != formatted(json.loads(p.read_text("utf-8"))) + "\n"
    ]
    assert not others, "python -m tools.format_configs"
