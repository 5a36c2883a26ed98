"""Weights: loads what a network was trained to, or says why it cannot."""

from __future__ import annotations

from collections.abc import Sequence
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
        load_path: file of weights; a list of them for an ensemble.
        load_dict: one name and the network to load into; for an ensemble a list of as many networks.
        kwargs: as in ``monai.handlers.CheckpointLoader``; weights of any floating precision fit.

    Raises:
        ValueError: when there are not as many files as networks; when the engine starts and a file is missing, is not
            a state dict, or belongs to another network.
    """

    def __init__(self, *, load_path: str | Sequence[str], load_dict: dict[str, Any], **kwargs: Any) -> None:
        paths = [load_path] if isinstance(load_path, str) else list(load_path)
        super().__init__(load_path=next(iter(paths), ""), load_dict=load_dict, **{"map_location": "cpu", **kwargs})
        ((name, networks),) = load_dict.items()
        networks = list(networks) if isinstance(networks, (list, tuple)) else [networks]
        if len(paths) != len(networks):
            raise ValueError(
                f"load_path has {len(paths)} file(s) and load_dict {len(networks)} network(s): give as many."
            )
        self.pairs = [(path, {name: network}) for path, network in zip(paths, networks)]

    def __call__(self, engine: Engine) -> None:
        for path, targets in self.pairs:
            self.load_path, self.load_dict = path, targets
            self._load(engine)

    def _load(self, engine: Engine) -> None:
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
