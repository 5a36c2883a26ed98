"""Unit tests in the Model Zoo's form: train, evaluate and infer with shrunken configs.

The file needs nothing else of this repository: in the zoo it lies in ci/unit_tests, and the bundle in models/.
"""

import json
import os
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import nibabel
import numpy as np
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

IN_THE_ZOO = Path("models/dbisl_semi_supervised_segmentation").resolve()
BUNDLE = IN_THE_ZOO if IN_THE_ZOO.is_dir() else Path(__file__).resolve().parents[2]

SHRUNKEN = {
    "bundle_root": str(BUNDLE),
    "base_filters": 2,
    "patch_size": [16, 16, 16],
    "stride": [16, 16, 16],
    "max_iterations": 2,
    "num_labeled": 2,
    "device": "$torch.device('cpu')",
}


def write_dataset(folder: str) -> str:
    """Seven volumes of a bright block, four for training, one for validation and two to report; returns ``folder``."""
    generator = np.random.default_rng(0)
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for number, name in enumerate(["training"] * 4 + ["validation"] + ["test"] * 2):
        label = np.zeros((20, 18, 16), np.uint8)
        label[5:14, 5:13, 4:12] = 1
        image = (100 + 200 * label + generator.normal(0, 20, label.shape)).astype(np.int16)
        case = {"image": f"image_{number}.nii.gz", "label": f"label_{number}.nii.gz"}
        for key, array in {"image": image, "label": label}.items():
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.2, 2.0, 1.0])), Path(folder, case[key]))
        lists[name].append(case)
    Path(folder, "dataset.json").write_text(json.dumps(lists))
    return folder


class TestDBiSL(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        # The bundle's own code is found from its root, and a run ends errors in its own way.
        self.addCleanup(os.chdir, os.getcwd())
        self.addCleanup(setattr, sys, "excepthook", sys.excepthook)
        self.addCleanup(set_determinism, None)
        os.chdir(BUNDLE)
        sys.path.insert(0, str(BUNDLE))
        self.addCleanup(sys.path.remove, str(BUNDLE))
        self.output = Path(self.folder, "out")
        data = Path(self.folder, "data")
        data.mkdir()
        self.overrides = {
            **SHRUNKEN,
            "dataset_dir": write_dataset(str(data)),
            "output_dir": str(self.output),
            "ckpt_dir": str(self.output / "models"),
        }

    def check(self, *files, workflow_type, **overrides):
        workflow = ConfigWorkflow(
            config_file=[str(BUNDLE / "configs" / file) for file in files],
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            logging_file=str(BUNDLE / "configs" / "logging.conf"),
            workflow_type=workflow_type,
            **overrides,
        )
        workflow.initialize()
        self.assertEqual(workflow.check_properties(), [])
        workflow.run()
        workflow.finalize()

    def test_train_evaluate_and_infer_configs(self):
        self.check("train.json", workflow_type="train", **self.overrides)
        self.assertTrue((self.output / "models" / "model.pt").is_file())
        self.check("train.json", "evaluate.json", workflow_type="train", **self.overrides)
        self.assertEqual(len((self.output / "metrics.csv").read_text().splitlines()), 3)
        settings = json.loads((self.output / "models" / "model.json").read_text())
        settings |= {"bundle_root": str(BUNDLE), "device": SHRUNKEN["device"]}
        settings |= {"ckpt_path": str(self.output / "models" / "model.pt"), "output_dir": str(self.output / "masks")}
        case = {"image": str(Path(self.overrides["dataset_dir"], "image_6.nii.gz"))}
        self.check("inference.json", workflow_type="infer", **settings, **{"dataset#data": [case]})
        mask = nibabel.load(self.output / "masks" / "image_6_seg.nii.gz")
        self.assertEqual(mask.shape, (20, 18, 16))
        self.assertLessEqual(set(np.unique(np.asarray(mask.dataobj))), {0, 1})

    def test_infer_config_with_the_shipped_weights(self):
        changes = {"bundle_root": str(BUNDLE), "device": SHRUNKEN["device"], "output_dir": str(self.output)}
        case = {"image": str(Path(self.overrides["dataset_dir"], "image_0.nii.gz"))}
        self.check("inference.json", workflow_type="infer", **changes, **{"dataset#data": [case]})
        self.assertTrue((self.output / "image_0_seg.nii.gz").is_file())


if __name__ == "__main__":
    unittest.main()
