"""Weights: loads what a network was trained to, or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader


class WeightsCheckpointLoader(CheckpointLoader):
    """MONAI's CheckpointLoader, for plain state dicts, whose errors name the remedy.

    The name has to contain "CheckpointLoader": by that MONAI's federated client recognises the handlers that it must
    switch off, so as not to overwrite the weights of a round.

    Args:
        kwargs: as in ``monai.handlers.CheckpointLoader``; weights of any floating precision fit.

    Raises:
        ValueError: when the engine starts and the file is missing, is not a state dict, or belongs to another network.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"map_location": "cpu", **kwargs})

    def __call__(self, engine: Engine) -> None:
        path = Path(self.load_path)
        if not path.is_file():
            raise ValueError(f"{path} does not exist: train first, or say where the weights are (ckpt_dir, ckpt_path).")
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling a damaged or foreign file raises any of several types
            raise ValueError(f"{path} is not a file of weights ({type(error).__name__}: {error}).") from error
        try:
            super().__call__(engine)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} was trained with other settings than these (in_channels, num_classes, base_filters or the "
                f"network itself): add {path.with_suffix('.json')}, which training wrote, to --config_file. "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
