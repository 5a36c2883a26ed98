"""Weights: loads what a network was trained to, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import nn


class LoadWeights:
    """Loads a plain state dict, in any precision, into a network when the engine starts.

    Args:
        path: the .pt file, read with ``weights_only``.
        network: receives the weights.

    Raises:
        ValueError: when the engine starts and the file is missing, is not a state dict, or belongs to another network.
    """

    def __init__(self, path: str | Path, network: nn.Module) -> None:
        self.path = Path(path)
        self.network = network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._load)

    def _load(self, engine: Engine) -> None:
        if not self.path.is_file():
            raise ValueError(f"{self.path} does not exist: train first, or set where the weights are (--ckpt_dir).")
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling a damaged or foreign file raises any of several types
            raise ValueError(f"{self.path} is not a file of weights ({type(error).__name__}: {error}).") from error
        try:
            self.network.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"{self.path} was trained with other settings than these (in_channels, num_classes, base_filters or "
                f"the network itself): add {self.path.with_suffix('.json')}, which training wrote, to --config_file. "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
