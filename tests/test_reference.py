"""Tests of scripts/settings.py and tools/release/reference.py: every id has type and meaning; the page is current."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from conftest import ROOT

from scripts.settings import IDS, PARTS
from tools.release.reference import FILES, main, page, parts_of, read_configs, shown, top_level

CONFIGS = read_configs()
MEANINGS = {key: entry for section in IDS.values() for key, entry in section.items()}


def numbers(value: object, count: int | None = None, *, kinds: tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, list) and count in (None, len(value)) and all(is_a(item, kinds) for item in value)


def is_a(value: object, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (not isinstance(value, bool) or kinds is bool)


# What a literal default of a type has to be.
CHECKS = {
    "path": lambda value: isinstance(value, str),
    "path or list of paths": lambda value: isinstance(value, str),
    "text": lambda value: isinstance(value, str),
    "text or null": lambda value: value is None or isinstance(value, str),
    "integer or null": lambda value: value is None or is_a(value, int),
    "integer": lambda value: is_a(value, int),
    "number": lambda value: is_a(value, (int, float)),
    "boolean or text": lambda value: isinstance(value, (bool, str)),
    "boolean": lambda value: is_a(value, bool),
    "3 integers": lambda value: numbers(value, 3, kinds=(int,)),
    "3 numbers or null": lambda value: value is None or numbers(value, 3),
    "2 numbers or null": lambda value: value is None or numbers(value, 2),
    "list of integers": lambda value: numbers(value, kinds=(int,)),
    "list of integers or null": lambda value: value is None or numbers(value, kinds=(int,)),
    "list of texts or null": lambda value: value is None or all(isinstance(item, str) for item in value),
    "list of lists of integers or null": lambda value: value is None,
    "map of ranges or null": lambda value: value is None,
    "map or null": lambda value: value is None,
    "list": lambda value: isinstance(value, list),
    "map": lambda value: isinstance(value, dict) and "_target_" not in value,
    "object": lambda value: isinstance(value, dict) and "_target_" in value,
    "expression": lambda value: False,
}


def test_every_id_has_a_meaning_and_every_meaning_an_id():
    ids = set().union(*(top_level(config) for config in CONFIGS.values()))
    assert sorted(ids - set(MEANINGS)) == [], "describe it in scripts.settings.py"
    assert sorted(set(MEANINGS) - ids) == [], "no config has it any more"
    assert sum(map(len, IDS.values())) == len(MEANINGS)  # none stands in two sections


@pytest.mark.parametrize("name", ["train", "validate"])
def test_every_part_has_a_meaning_and_every_meaning_a_part(name):
    assert set(PARTS[name]) == set().union(*(parts_of(CONFIGS[file], name) for file in FILES))


@pytest.mark.parametrize("key", MEANINGS)
def test_type_is_that_of_the_defaults(key):
    kind, meaning = MEANINGS[key]
    for config in CONFIGS.values():
        value = config.get(key)
        if key in config and not (isinstance(value, str) and value[:1] in "$@%"):
            assert CHECKS[kind](value), f"{value!r} is no {kind}"
    assert len(meaning) > 5 and not meaning.endswith(".")


def test_page_is_up_to_date(tmp_path):
    main(tmp_path / "reference.md")
    current = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert current == (tmp_path / "reference.md").read_text(encoding="utf-8"), "run python -m tools.release.reference"


def test_page_has_one_row_per_id_with_the_defaults_of_the_files():
    rows = dict(re.findall(r"^\| `([\w#]+)` \|(.*)\|$", page(), flags=re.MULTILINE))
    assert set(rows) == set(MEANINGS) | {f"{name}#{part}" for name, parts in PARTS.items() for part in parts}
    assert rows["base_filters"].split("|")[1:3] == [" `16` ", " `8` "]
    assert rows["num_labeled"].split("|")[1:3] == [" `16` ", " – "]
    assert rows["decoders"].split("|")[1:4] == [" – ", ' `"both"` ', ' `"both"` ']
    assert rows["ckpt_path"].split("|")[1:3] == [" – ", " `$@ckpt_dir + '/model.pt'` "]
    assert rows["validate"].split("|")[2] == " 8 parts "
    assert rows["network_def"].split("|")[1] == " `networks.DualTaskVNet` "
    assert rows["validate#dataset"].split("|")[:2] == [" `CacheDataset` ", " `Dataset` "]


def test_a_changed_default_and_a_new_id_change_page_and_completeness(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    path = tmp_path / "configs" / "train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_filters": 17, "brand_new": 1}))
    assert "`17` | `8`" in page(tmp_path) and "`17` | `8`" not in page()
    assert "brand_new" in top_level(read_configs(tmp_path)["train"]) - set(MEANINGS)


def test_defaults_are_shown_short_and_fit_a_cell():
    assert shown("$a | b") == "`$a \\| b`"
    assert shown({"_target_": "scripts.data.Datalist", "x": 1}) == "`data.Datalist`"
    assert shown([{"_target_": "RandFlipd", "keys": ["image", "label", "distance"]}] * 2) == "2 entries"
    assert [shown(value) for value in (None, False, [1.25, 2], "auto")] == [
        "`null`",
        "`false`",
        "`[1.25, 2]`",
        '`"auto"`',
    ]
