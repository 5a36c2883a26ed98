"""Test of the memory that inference of a large volume takes, in a process of its own."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import ROOT, las, run_process, save

from scripts.data.machine import total_memory

SHAPE = (512, 512, 600)
# What docs/inference.md states for this volume, the program itself included.
LIMIT = 4.5e9

# VmHWM and not ru_maxrss, which a child inherits from its parent.
PROGRAM = """
import sys
from monai.bundle import ConfigWorkflow

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

convolution = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 1, "kernel_size": 3, "padding": 1}
bundle = ConfigWorkflow(
    "configs/inference.json",
    workflow_type="inference",
    logging_file=False,
    input_dir=sys.argv[1],
    output_dir=sys.argv[2],
    network_def=convolution,
    spacing=None,
    patch_size=[96, 96, 96],
    stride=[96, 96, 96],
    sw_batch_size=1,
    device="$torch.device('cpu')",
    **{"handlers#0#_disabled_": True},
)
bundle.initialize()
bundle.run()
print("bytes", peak())
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif((total_memory() or LIMIT) < 2 * LIMIT, reason="needs more memory than this machine has")
def test_memory_of_a_large_volume_is_what_the_documentation_states(tmp_path):
    assert "512x512x600 stays below 4.5 GB" in (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    image = np.zeros(SHAPE, dtype=np.int16)
    image[60:120, 60:120, 60:120] = 300
    stored = image.nbytes
    save(image, las((1.0, 1.0, 1.0)), tmp_path / "new" / "large.nii")
    finished = run_process([sys.executable, "-c", PROGRAM, str(tmp_path / "new"), str(tmp_path / "masks")])
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "masks" / "large_seg.nii.gz").is_file()
    used = int(finished.stdout.split("bytes")[1])
    assert 2 * stored < used < LIMIT
