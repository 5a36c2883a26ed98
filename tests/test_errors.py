"""Tests of scripts/errors.py, in real processes: users' errors end in one line, defects keep their traceback."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT, run_process

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
    assert "\nerror:" not in finished.stderr and "please report it" in finished.stderr


def test_error_that_only_preceded_a_defect_and_was_dismissed_does_not_hide_it():
    finished = run(
        f"try:\n    {'; '.join(['open(chr(47) + chr(48))'])}\nexcept OSError:\n    raise KeyError('k') from None"
    )
    assert "Traceback" in finished.stderr and "KeyError: 'k'" in finished.stderr


def test_all_tracebacks_are_shown_on_demand():
    finished = run(wrapped(USERS_ERROR), DBISL_TRACEBACK="1")
    assert finished.returncode == 1
    assert finished.stderr.count("Traceback (most recent call last)") == 3
    assert f"UserError: {USERS_TEXT}" in finished.stderr


def test_interruption_is_no_users_error():
    finished = run("raise KeyboardInterrupt")
    assert finished.returncode != 0
    assert "KeyboardInterrupt" in finished.stderr and "error:" not in finished.stderr
