"""Tests of scripts/errors.py, in real processes: users' errors end in one line, defects keep their traceback."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import ROOT, merged, run_bundle, run_process, small

from scripts.errors import refused_setting

# Loads one file of scripts/ alone; the packages around it would take seconds to import.
SCHEDULES = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("schedules", {str(ROOT / "scripts" / "training" / "schedules.py")!r})
schedules = importlib.util.module_from_spec(spec)
spec.loader.exec_module(schedules)
"""
USERS_ERROR = SCHEDULES + "schedules.iterations_per_epoch(0)"
USERS_TEXT = "max_iterations is 0; it must be a positive integer."


def wrapped(code: str) -> str:
    """The code inside two exceptions, as MONAI's runner does it."""
    body = "\n        ".join(code.strip().splitlines())
    return f"""
try:
    try:
        {body}
    except Exception as e:
        raise RuntimeError("failed to instantiate") from e
except Exception as e:
    raise RuntimeError("failed to evaluate") from e
"""


def run(code: str, **environment: str):
    start = "from scripts.errors import print_briefly\nprint_briefly()\nprint('started', flush=True)\n"
    finished = run_process([sys.executable, "-c", start + code], **environment)
    assert finished.stdout == "started\n", finished.stderr
    return finished


@pytest.mark.parametrize("code", [USERS_ERROR, wrapped(USERS_ERROR)], ids=["plain", "wrapped"])
def test_users_error_is_one_line_and_exit_status_1(code):
    finished = run(code)
    assert finished.returncode == 1
    assert finished.stderr.strip() == f"error: {USERS_TEXT}"


@pytest.mark.parametrize("code", ["open('/no/such/file')", wrapped("open('/no/such/file')")], ids=["plain", "wrapped"])
def test_missing_file_is_one_line_that_names_it(code):
    finished = run(code)
    assert finished.returncode == 1
    assert finished.stderr.strip().splitlines() == ["error: [Errno 2] No such file or directory: '/no/such/file'"]


@pytest.mark.parametrize(
    "code, name",
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (wrapped("1 / 0"), "ZeroDivisionError: division by zero"),
        ("int('x')", "ValueError: invalid literal for int"),
        ("import json; json.loads('{')", "json.decoder.JSONDecodeError"),
        (SCHEDULES + "schedules.iterations_per_epoch(4, at_most='x')", "TypeError"),
    ],
    ids=["plain", "wrapped", "value-error-elsewhere", "value-error-of-a-library", "other-error-of-ours"],
)
def test_defect_keeps_its_traceback(code, name):
    finished = run(code)
    assert finished.returncode == 1
    assert "Traceback (most recent call last)" in finished.stderr
    assert name in finished.stderr
    assert "\nerror:" not in finished.stderr


def test_error_that_only_preceded_a_defect_and_was_dismissed_does_not_hide_it():
    finished = run(
        f"try:\n    {'; '.join(['open(chr(47) + chr(48))'])}\nexcept OSError:\n    raise KeyError('k') from None"
    )
    assert "Traceback" in finished.stderr and "KeyError: 'k'" in finished.stderr


def test_all_tracebacks_are_shown_on_demand():
    finished = run(wrapped(USERS_ERROR), DBISL_TRACEBACK="1")
    assert finished.returncode == 1
    assert finished.stderr.count("Traceback (most recent call last)") == 3
    assert f"ValueError: {USERS_TEXT}" in finished.stderr


# --- what MONAI cannot make of a setting ---


def made_of(identifier: str, tiny, tmp_path, **settings: object) -> str | None:
    """What is said when ``identifier`` of train.json cannot be made of ``settings``."""
    parser = merged("configs/train.json")
    parser.update(small(tiny, tmp_path, **settings))
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        parser.get_parsed_content(identifier)
    return refused_setting(caught.value)


@pytest.mark.parametrize(
    "identifier, settings, part, reason",
    [
        (
            "optimizer",
            {"learning_rate": "abc"},
            "optimizer cannot be made of learning_rate 'abc'",
            "TypeError: '<' not ",
        ),
        (
            "train#trainer",
            {"learning_rate": -1},
            "optimizer cannot be made of learning_rate -1",
            "Invalid learning rate",
        ),
        (
            "train#preprocessing",
            {"foreground_crops": 2},
            "train#crop_transforms#3 cannot be made of foreground_crops 2, crop_size [16, 16, 16]",
            "pos and neg must be nonnegative, got pos=2 neg=-1",
        ),
        (
            "train#preprocessing",
            {"foreground_crops": "abc"},
            "train#crop_transforms#2#_disabled_ cannot be made of foreground_crops 'abc'",
            "TypeError: '>' not supported",
        ),
    ],
)
def test_setting_that_a_part_cannot_be_made_of_is_named_with_the_part(
    tiny, tmp_path, identifier, settings, part, reason
):
    message = made_of(identifier, tiny, tmp_path, **settings)
    assert message.startswith(f"{part}: {reason}") and message.endswith(". DBISL_TRACEBACK=1 shows where.")
    assert len(message.splitlines()) == 1


def test_part_that_fails_otherwise_is_no_matter_of_the_settings(tiny, tmp_path):
    assert made_of("network", tiny, tmp_path, network="$1 / 0") is None
    assert made_of("network", tiny, tmp_path, network="$torch.zeros(2).view(3)") is None  # a RuntimeError
    assert refused_setting(ValueError("of anything")) is None


@pytest.mark.parametrize("entry", ["$len(@number)", {"_target_": "builtins.len", "obj": "@number"}])
def test_failure_of_an_entry_of_the_run_list_is_no_matter_of_the_settings(workflow, tmp_path, entry):
    (tmp_path / "config.json").write_text(json.dumps({"number": 3, "run": [entry]}))
    bundle = workflow(str(tmp_path / "config.json"))
    bundle.initialize()
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        bundle.run()
    assert isinstance(caught.value.__cause__, TypeError)
    assert refused_setting(caught.value) is None


def test_setting_that_no_part_can_be_made_of_ends_a_training_in_one_line(tiny, tmp_path):
    finished = run_bundle("training", "configs/train.json", **small(tiny, tmp_path, foreground_crops=2))
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "\nerror: train#crop_transforms#3 cannot be made of foreground_crops 2, crop_size" in finished.stderr


def test_interruption_is_no_users_error():
    finished = run("raise KeyboardInterrupt")
    assert finished.returncode != 0
    assert "KeyboardInterrupt" in finished.stderr and "error:" not in finished.stderr
