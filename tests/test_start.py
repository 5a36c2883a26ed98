"""Tests of the start of inference: packages that it does not need may be missing, and are not asked for by us."""

import json
import sys
from pathlib import Path

from conftest import ROOT, SHAPES, SPACINGS, blob, las, run_process, save

# Packages of training that MONAI imports wherever they are installed.
UNNEEDED = ("mlflow", "matplotlib", "pandas", "sklearn")
# Runs MONAI's bundle command as if they were not installed, and notes which files of scripts/ ask for one of them.
COMMAND = """
import importlib.abc, json, sys
from pathlib import Path
asked = []
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {unneeded}:
            frame = sys._getframe()
            while frame:
                if "/scripts/" in frame.f_code.co_filename and "monai" not in frame.f_code.co_filename:
                    asked.append([name, frame.f_code.co_filename])
                frame = frame.f_back
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv = ["bundle", *{arguments}]
from monai.bundle.scripts import run
run(run_id="inference", config_file="configs/inference.json", **{overrides})
Path({result}).write_text(json.dumps([asked, sorted(set(sys.modules) & set({unneeded}))]))
"""


def test_inference_runs_without_the_packages_of_training_and_asks_for_none(tmp_path: Path):
    image, _ = blob(SHAPES[0], seed=0)
    save(image, las(SPACINGS[0]), tmp_path / "in" / "case.nii.gz")
    overrides = {
        "input_dir": str(tmp_path / "in"),
        "output_dir": str(tmp_path / "out"),
        "patch_size": [16, 16, 16],
        "stride": [16, 16, 16],
        "device": "$torch.device('cpu')",
    }
    result = tmp_path / "result.json"
    code = COMMAND.format(unneeded=UNNEEDED, arguments=[], overrides=overrides, result=repr(str(result)))
    done = run_process([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "case_seg.nii.gz").is_file()
    assert json.loads(result.read_text()) == [[], []]
