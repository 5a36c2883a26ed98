"""Tests of scripts/launch.py, with real processes of torchrun."""

from __future__ import annotations

import sys

import pytest
from conftest import run_process


@pytest.mark.parametrize("ending, status, traceback", [("sys.exit(2)", 2, False), ("os.kill(os.getpid(), 9)", 1, True)])
def test_status_is_that_of_the_process_that_failed_and_a_killed_one_is_reported(tmp_path, ending, status, traceback):
    program = tmp_path / "program.py"
    program.write_text(f"import os, sys\nif os.environ['RANK'] == '1':\n    {ending}\n")
    finished = run_process([sys.executable, "-m", "scripts.launch", "--standalone", "--nproc_per_node=2", str(program)])
    assert finished.returncode == status
    assert ("SIGKILL" in finished.stderr) == ("Traceback" in finished.stderr) == traceback
