"""MONAI Deploy application: segments the first fitting series of the first DICOM study by an unpacked bundle.

python app.py --input DICOM --output FOLDER --model BUNDLE

``series.json`` beside this file says which series fit, or the file that the environment variable SERIES_RULES names.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from holoscan.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType
from monai.deploy.operators import (
    DICOMDataLoaderOperator,
    DICOMSegmentationWriterOperator,
    DICOMSeriesSelectorOperator,
    DICOMSeriesToVolumeOperator,
    IOMapping,
    ModelInfo,
    MonaiBundleInferenceOperator,
)
from monai.deploy.operators.dicom_seg_writer_operator import SegmentDescription
from pydicom.sr.coding import Code

RULES = Path(__file__).with_name("series.json")
TISSUE = ("85756007", "SCT", "Tissue")


class SegmentationApp(Application):
    """DICOM files -> studies -> the chosen series -> volume -> mask of the bundle -> DICOM-SEG."""

    def compose(self) -> None:
        context = Application.init_app_context(self.argv)
        bundle = Path(context.model_path)
        metadata = read(bundle / "configs" / "metadata.json")
        once = CountCondition(self, 1)  # without it the loader would start anew for ever
        loader = DICOMDataLoaderOperator(self, once, input_folder=Path(context.input_path), name="loader")
        rules = Path(os.environ.get("SERIES_RULES", RULES)).read_text(encoding="utf-8")
        selector = DICOMSeriesSelectorOperator(self, rules=rules, name="selector")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        segmentation = MonaiBundleInferenceOperator(
            self,
            # Without models, which it would look for in every folder of the bundle.
            app_context=AppContext({}),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=bundle,
            name="segmentation",
        )
        writer = DICOMSegmentationWriterOperator(
            self,
            segment_descriptions=descriptions(bundle, metadata),
            output_folder=Path(context.output_path),
            model_info=ModelInfo(metadata["authors"], metadata["name"], metadata["version"]),
            name="writer",
        )
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        chosen = ("study_selected_series_list", "study_selected_series_list")
        self.add_flow(selector, volume, {chosen})
        self.add_flow(volume, segmentation, {("image", "image")})
        self.add_flow(selector, writer, {chosen})
        self.add_flow(segmentation, writer, {("pred", "seg_image")})


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def descriptions(bundle: Path, metadata: dict) -> list[SegmentDescription]:
    """Of the classes: names of inference.json, codes of the metadata where it has them."""
    config = read(bundle / "configs" / "inference.json")
    names = config["class_names"] or [f"class {number + 1}" for number in range(config["num_classes"])]
    found = []
    for name in names:
        codes = metadata.get("segment_codes", {}).get(name, {})
        category, kind = (Code(*codes.get(key, TISSUE)) for key in ("category", "type"))
        found.append(SegmentDescription(name, category, kind, metadata["name"], metadata["version"]))
    return found


if __name__ == "__main__":
    logging.getLogger("highdicom").setLevel(logging.WARNING)
    SegmentationApp().run()
