"""Segmenter: the bundle's inference as a Python call, from an array and its affine to a mask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from scripts.data import DataError
from scripts.setting_checks import check_names

from .failures import check_image

BUNDLE = Path(__file__).resolve().parents[2]
# What reads and writes files, of which a call on arrays has none.
WITH_FILES = ("LoadImaged", "EnsureChannelFirstd", "SaveOutputsd", "SavePreviewd")


class Segmenter:
    """Segments arrays as ``run inference`` segments files, with the network, weights and steps of its config.

    Args:
        config_files: like those of the command; inference.json of this bundle with the settings of models/model.json
            by default.
        overrides: config ids and their values, such as ``ckpt_path``, ``device``, ``threshold`` or ``flip_axes``.

    Raises:
        UnknownIdError: when an override is no id of the config.
    """

    def __init__(self, config_files: Sequence[str | Path] | None = None, **overrides: Any) -> None:
        files = config_files or [BUNDLE / "configs" / "inference.json", BUNDLE / "models" / "model.json"]
        parser = ConfigParser()
        parser.read_config([str(path) for path in files])
        check_names(overrides, parser.get(), [str(path) for path in files])
        parser.update({"bundle_root": str(BUNDLE), **overrides})
        for part in ("preprocessing", "postprocessing"):
            for transform in parser[part]["transforms"]:
                if transform["_target_"].rpartition(".")[2] in WITH_FILES:
                    transform["_disabled_"] = True
        self.device = torch.device(parser.get_parsed_content("device"))
        amp, options = (parser.get_parsed_content(name) for name in ("amp", "amp_options"))
        self.autocast = partial(torch.autocast, self.device.type, enabled=bool(amp), **options)
        self.in_channels = parser.get_parsed_content("in_channels")
        self.preprocessing = parser.get_parsed_content("preprocessing")
        self.postprocessing = parser.get_parsed_content("postprocessing")
        self.inferer = parser.get_parsed_content("inferer")
        self.network = parser.get_parsed_content("evaluator#network").eval()
        for number, handler in enumerate(parser["handlers"]):
            if isinstance(handler, dict) and handler["_target_"].endswith("CheckpointLoader"):
                parser.get_parsed_content(f"handlers#{number}").load()

    def __call__(self, image: np.ndarray | torch.Tensor, affine: np.ndarray) -> np.ndarray:
        """The mask of an image, on its grid.

        Args:
            image: (H, W, D), or (H, W, D, C) of several channels, any number type.
            affine: (4, 4), voxel to world, mm, in RAS+ as nibabel has it.

        Returns:
            (H, W, D), label values, uint8 or int32; of overlapping regions (H, W, D, C) of 0 and 1.

        Raises:
            DataError: when no sensible mask can be made of the image, as for a file.
        """
        voxels = torch.as_tensor(np.asarray(image, dtype=np.float32))
        if voxels.ndim not in (3, 4):
            raise DataError(f"the image has the shape {tuple(voxels.shape)}; it is (H, W, D) or (H, W, D, channels).")
        voxels = voxels[None] if voxels.ndim == 3 else voxels.movedim(-1, 0)
        tensor = MetaTensor(voxels, affine=torch.as_tensor(np.asarray(affine, dtype=np.float64)))
        tensor.meta["filename_or_obj"] = "the image"
        item = self.preprocessing({"image": tensor})
        prepared = item["image"]
        check_image(prepared, "the image", in_channels=self.in_channels, window=self.inferer.roi_size)
        with torch.no_grad(), self.autocast():
            probability = self.inferer(prepared.as_tensor()[None].to(self.device), self.network)[0]
        item["pred"] = MetaTensor(probability, meta=prepared.meta)
        mask = self.postprocessing(item)["mask"].as_tensor().cpu().numpy()
        return mask[0] if mask.shape[0] == 1 else np.moveaxis(mask, 0, -1)
