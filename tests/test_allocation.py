"""Tests of scripts/allocation.py: freed memory is used again, unless the user has chosen otherwise, and by whom."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from scripts.allocation import CHOSEN_BY_USER

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")

# Ten arrays of 12 MB live at once, as the maps of a training iteration do; after two rounds the pages are counted that
# the third gets anew.
PROGRAM = """
import resource, sys
import numpy as np
from scripts.allocation import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.empty(3 * 2**20, np.float32) for _ in range(10)]
    for array in arrays:
        array.fill(1)
    del array, arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def fresh_pages(how: str, **environment: str) -> tuple[str, int]:
    """What keep_freed_memory returned, and the page faults of the third round."""
    inherited = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY_USER}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**inherited, **environment},
    )
    returned, faults = done.stdout.split()
    return returned, int(faults)


def test_memory_that_was_freed_is_not_cleared_again_by_the_system():
    returned, faults = fresh_pages("keep")
    # 120 MB are 30,720 pages of 4 KB; what a huge page would hide is hidden in the comparison, too.
    assert returned == "True" and faults < 0.05 * fresh_pages("leave")[1]


def test_settings_in_the_environment_are_left_as_they_are():
    returned, faults = fresh_pages("keep", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert returned == "False" and faults > 100
