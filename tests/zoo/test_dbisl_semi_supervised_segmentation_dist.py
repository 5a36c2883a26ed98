"""Unit tests in the Model Zoo's form, of several processes: the configs are merged, written out, checked and run.

Two processes per machine, on its GPUs where there are two, else on the CPU over gloo. Lies beside the file of the one
process, and like it needs nothing else.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism
from test_dbisl_semi_supervised_segmentation import BUNDLE, SHRUNKEN, write_dataset

CONFIGS = BUNDLE / "configs"
METADATA, LOGGING = str(CONFIGS / "metadata.json"), str(CONFIGS / "logging.conf")
# What torchrun tells a process; here of a group of one, to check the configs in.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


class TestDBiSLOnSeveralDevices(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.addCleanup(os.chdir, os.getcwd())
        self.addCleanup(setattr, sys, "excepthook", sys.excepthook)
        self.addCleanup(set_determinism, None)
        os.chdir(BUNDLE)
        sys.path.insert(0, str(BUNDLE))
        self.addCleanup(sys.path.remove, str(BUNDLE))
        (self.folder / "data").mkdir()
        self.overrides = {
            **SHRUNKEN,
            "labeled_batch_size": 1,
            "unlabeled_batch_size": 1,
            "dataset_dir": write_dataset(str(self.folder / "data")),
            "output_dir": str(self.folder / "out"),
            "ckpt_dir": str(self.folder / "out" / "models"),
        }
        del self.overrides["device"]
        self.environment = {"PYTHONPATH": str(BUNDLE), "OMP_NUM_THREADS": "1"}
        if torch.cuda.device_count() < 2:
            self.environment["CUDA_VISIBLE_DEVICES"] = ""

    def check_and_run(self, name, *files):
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / file) for file in files])
        parser.update(pairs=self.overrides)
        exported = str(self.folder / name)
        ConfigParser.export_config_file(parser.config, exported, indent=4)
        with mock.patch.dict(os.environ, ALONE):
            workflow = ConfigWorkflow(exported, meta_file=METADATA, logging_file=LOGGING, workflow_type="train")
            workflow.initialize()
            self.assertEqual(workflow.check_properties(), [])
            workflow.finalize()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
        command += ["-m", "monai.bundle", "run", "--config_file", exported]
        command += ["--meta_file", METADATA, "--logging_file", LOGGING]
        finished = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=600
        )
        self.assertEqual(finished.returncode, 0, finished.stderr)

    def test_train_and_evaluate_configs_in_two_processes(self):
        self.check_and_run("train_override.json", "train.json", "multi_gpu_train.json")
        output = self.folder / "out"
        self.assertTrue((output / "models" / "model.pt").is_file())
        self.check_and_run("evaluate_override.json", "train.json", "evaluate.json", "multi_gpu_evaluate.json")
        self.assertEqual(len((output / "metrics.csv").read_text().splitlines()), 3)
        self.assertEqual(len(list(output.glob("*_seg.nii.gz"))), 2)


if __name__ == "__main__":
    unittest.main()
