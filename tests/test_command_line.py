"""Tests of tools/command_line.py: what people type becomes what a function takes, or an error before it starts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import SHAPES, blob, las, run_process, save

from scripts.data import DataError
from tools.command_line import OptionError, options_of, parsed
from tools.preparation.dataset import make_dataset
from tools.preparation.volumes import renumber

NAMES, NUMBERS, MAP = Sequence[str] | None, Sequence[float] | None, Mapping[int | str, int] | None
SIDES = ["left kidney", "right kidney"]


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("[left kidney,right kidney]", NAMES, SIDES),
        ("left kidney, right kidney", NAMES, SIDES),
        ("['left kidney', \"right kidney\"]", NAMES, SIDES),
        ("atrium", NAMES, ["atrium"]),
        ("['a,b',c]", NAMES, ["a,b", "c"]),
        ("L'oeil,R'oeil", NAMES, ["L'oeil", "R'oeil"]),
        ("None", NAMES, None),
        ("[1,2]", NAMES, ["1", "2"]),
        ("[1,1,3]", NUMBERS, [1.0, 1.0, 3.0]),
        ("1 1 3", NUMBERS, [1.0, 1.0, 3.0]),
        ("1, 1, 3", NUMBERS, [1.0, 1.0, 3.0]),
        ("(1,1)", NUMBERS, [1.0, 1.0]),
        ("32", Sequence[int], [32]),
        ("[[1,2],[2]]", Sequence[Sequence[int]], [[1, 2], [2]]),
        ("{255: 1}", MAP, {255: 1}),
        ("2:1", MAP, {2: 1}),
        ("{420:1,'500':2, others : 0}", MAP, {420: 1, 500: 2, "others": 0}),
        ("{training: [0,56], test: [64,80]}", dict[str, Sequence[int]], {"training": [0, 56], "test": [64, 80]}),
        ("20240501", str, "20240501"),
        ("007", str | Sequence[str] | None, "007"),
        ("[a,b]", str | Sequence[str] | None, ["a", "b"]),
        ("0.2", int | float | None, 0.2),
        ("6", int | float | None, 6),
        ("true", bool, True),
        ("No", bool, False),
    ],
)
def test_text_becomes_what_is_meant(text, kind, value):
    found = parsed(text, kind)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("six", int),
        ("1.5", int),
        ("[1,1", NUMBERS),
        ("a b", NUMBERS),
        ("255", MAP),
        ("{255: one}", MAP),
        ("perhaps", bool),
        ("[1,2]", int | None),
    ],
)
def test_text_of_another_form_is_refused_with_the_value(text, kind):
    with pytest.raises(OptionError) as caught:
        parsed(text, kind, name="option")
    assert "--option" in str(caught.value) and repr(text) in str(caught.value)


def example(
    *,
    output_dir: str,
    names: Sequence[str] | None = None,
    spacing: NUMBERS = None,
    mapping: MAP = None,
    count: int = 2,
    on: bool = False,
) -> None:
    """Something.

    Args:
        output_dir: where to.
        names: of the
            classes.
        spacing: mm.
        mapping: of values.
        count: how many.
        on: or off.

    Raises:
        DataError: never.
    """


@pytest.mark.parametrize(
    "words, values",
    [
        (["--output_dir", "20240501"], {"output_dir": "20240501"}),
        (["--output-dir=a-b", "--count=3"], {"output_dir": "a-b", "count": 3}),
        (["--output_dir", "a", "--spacing", "1", "1", "3"], {"output_dir": "a", "spacing": [1, 1, 3]}),
        (["--output_dir", "a", "--spacing", "[1,", "1,", "3]"], {"output_dir": "a", "spacing": [1, 1, 3]}),
        (["--output_dir", "a", "--names", "left", "right"], {"output_dir": "a", "names": ["left", "right"]}),
        (["--output_dir", "a", "--names", "left", "kidney,right", "kidney"], {"output_dir": "a", "names": SIDES}),
        (["--output_dir", "a", "--mapping", "{2:", "1}"], {"output_dir": "a", "mapping": {2: 1}}),
        (["--on", "--output_dir", "a"], {"output_dir": "a", "on": True}),
        (["--on", "false", "--output_dir", "a"], {"output_dir": "a", "on": False}),
    ],
)
def test_options_are_the_arguments_of_the_function(words, values):
    assert options_of(example, words) == values


@pytest.mark.parametrize(
    "words, named",
    [
        ([], "output_dir"),
        (["--output_dir", "a", "--cuont", "3"], "--count"),
        (["--output_dir", "a", "--count", "3", "4"], "'4'"),
        (["--output_dir", "a", "b"], "'b'"),
        (["--output_dir", "a", "--count", "3", "--count", "3"], "--count is given twice"),
        (["--output_dir", "a", "--out", "b"], "--out is no option"),
    ],
)
def test_what_no_option_takes_is_refused_before_anything_is_done(words, named):
    with pytest.raises(OptionError) as caught:
        options_of(example, words)
    assert named in str(caught.value)


def test_help_has_what_the_docstring_says_of_each_option(capsys):
    with pytest.raises(SystemExit):
        options_of(example, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--output_dir TEXT where to (required)" in shown and "--names LIST of the classes (optional)" in shown
    assert "--spacing VALUE mm (optional)" in shown  # its type has another name
    assert "--count INTEGER how many (default: 2)" in shown and "never" not in shown


# --- as a user types it ---


def pairs(folder: Path, values: list[int], *, dtype: type = np.uint8) -> dict[str, str]:
    for n in range(4):
        voxels, mask = blob(SHAPES[0], seed=n, num_classes=2)
        label = np.array([0, *values], dtype)[mask]
        save(voxels, las((1, 1, 1)), folder / "images" / f"p{n}.nii.gz")
        save(label, las((1, 1, 1)), folder / "labels" / f"p{n}.nii.gz")
    return {"image_dir": str(folder / "images"), "label_dir": str(folder / "labels")}


def test_misspelt_option_of_the_builder_writes_nothing(tmp_path):
    given = pairs(tmp_path, [1, 2])
    command = [sys.executable, "-m", make_dataset.__module__, "--output_dir", str(tmp_path / "set"), "--labelled", "2"]
    done = run_process([*command, *(word for name, value in given.items() for word in (f"--{name}", value))])
    assert done.returncode == 1 and "--labeled" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "set").exists()


def test_names_without_quotes_and_a_map_without_braces_make_a_data_set(tmp_path):
    given = pairs(tmp_path, [1, 2])
    command = [sys.executable, "-m", make_dataset.__module__, "--output_dir", str(tmp_path / "20240501")]
    command += ["--class_names", "[left kidney,right kidney]", "--label_map", "1:2, 2:1", "--test", "1"]
    done = run_process([*command, *(word for name, value in given.items() for word in (f"--{name}", value))])
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "20240501" / "dataset.json").read_text()
    assert '"1": "left kidney"' in text and '"2": "right kidney"' in text
    before = np.asarray(nibabel.load(tmp_path / "labels" / "p0.nii.gz").dataobj)
    after = np.asarray(nibabel.load(tmp_path / "20240501" / "labels" / "p0.nii.gz").dataobj)
    assert np.array_equal(after, np.array([0, 2, 1])[before])


# --- label_map ---


def test_values_above_255_are_renumbered_and_all_others_become_background(tmp_path):
    given = pairs(tmp_path, [420, 1035], dtype=np.int16)
    options = {**given, "test": 1, "validation": 0}
    make_dataset(**options, output_dir=str(tmp_path / "set"), label_map={420: 1, "others": 0})
    before = np.asarray(nibabel.load(tmp_path / "labels" / "p1.nii.gz").dataobj)
    after = np.asarray(nibabel.load(tmp_path / "set" / "labels" / "p1.nii.gz").dataobj)
    assert np.array_equal(after, before == 420) and (before == 1035).any()
    with pytest.raises(DataError, match="1035.*others"):
        make_dataset(**options, output_dir=str(tmp_path / "other"), label_map={420: 1})
    assert not (tmp_path / "other" / "dataset.json").exists()


@pytest.mark.parametrize(
    "values, mapping, expected",
    [
        ([0, 1, 2, 255], {255: 1, "others": 0}, [0, 0, 0, 1]),
        ([0, 1, 2, 255], {1: 1, 2: 2, "others": 3}, [0, 1, 2, 3]),
        ([0.0, 1.0, 2.0, 2.0], {1: 2, 2: 1}, [0, 2, 1, 1]),
        ([0, 1, 1, 1], {0: 3, 1: 1}, [3, 1, 1, 1]),
        ([0, -1, 1, 1], {1: 1, "others": 0}, [0, 0, 1, 1]),
    ],
)
def test_values_become_what_the_map_says(values, mapping, expected):
    label = np.array(values).reshape(2, 2, 1)
    assert renumber(label, mapping, Path("a")).ravel().tolist() == expected


@pytest.mark.parametrize(
    "values, mapping, value",
    [([0, 1, 2, 255], {255: 1}, r"\[1, 2\]"), ([0, 0.5, 1, 1], {1: 1}, "0.5"), ([0, np.nan, 1, 1], {1: 1}, "nan")],
)
def test_values_that_the_map_does_not_name_or_that_are_none_are_refused(values, mapping, value):
    with pytest.raises(DataError, match=f"a.nii has label values .*{value}"):
        renumber(np.array(values).reshape(2, 2, 1), mapping, Path("a.nii"))


@pytest.mark.parametrize("mapping", [{"rest": 0}, {1: 256}, {1: -1}, {1: 0.5}, {True: 1}])
def test_map_to_or_from_what_is_no_label_value_is_refused_before_anything_is_written(tmp_path, mapping):
    with pytest.raises(DataError, match="label_map"):
        make_dataset(**pairs(tmp_path, [1, 2]), output_dir=str(tmp_path / "set"), label_map=mapping)
    assert not (tmp_path / "set").exists()


def test_fewer_names_than_label_values_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"1 names \(atrium\) .*\[1, 2\]"):
        make_dataset(**pairs(tmp_path, [1, 2]), output_dir=str(tmp_path / "set"), class_names=["atrium"])
    assert not (tmp_path / "set").exists()
