"""Weights: loads what a network was trained to, for volumes prepared as in its training, or says why it cannot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader

from scripts.errors import UserError

from .continuing import plain


class WeightsCheckpointLoader(CheckpointLoader):
    """MONAI's CheckpointLoader, for plain state dicts, whose errors name the remedy.

    The name has to contain "CheckpointLoader": by that MONAI's federated client recognises the handlers that it must
    switch off, so as not to overwrite the weights of a round.

    Args:
        load_path: file of weights; a list of them for an ensemble.
        load_dict: one name and the network to load into; for an ensemble a list of as many networks.
        settings: config ids and their values, of this run. Where the file that training writes beside its weights,
            ``model.json`` for ``model.pt``, names them too, they must be the same: with another spacing or intensity
            window a network segments without an error, and wrongly.
        kwargs: as in ``monai.handlers.CheckpointLoader``; weights of any floating precision fit.

    Raises:
        UserError: when there are not as many files as networks; when the engine starts and a file is missing, is not
            a state dict, belongs to another network or was trained with other ``settings``.
    """

    def __init__(
        self,
        *,
        load_path: str | Sequence[str],
        load_dict: dict[str, Any],
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        paths = [load_path] if isinstance(load_path, str) else list(load_path)
        super().__init__(load_path=next(iter(paths), ""), load_dict=load_dict, **{"map_location": "cpu", **kwargs})
        ((name, networks),) = load_dict.items()
        networks = list(networks) if isinstance(networks, (list, tuple)) else [networks]
        if len(paths) != len(networks):
            raise UserError(
                f"load_path has {len(paths)} file(s) and load_dict {len(networks)} network(s): give as many."
            )
        self.settings = dict(settings or {})
        self.pairs = [(path, {name: network}) for path, network in zip(paths, networks)]

    def __call__(self, engine: Engine) -> None:
        for path, targets in self.pairs:
            self.load_path, self.load_dict = path, targets
            self._load(engine)

    def _load(self, engine: Engine) -> None:
        path = Path(self.load_path)
        if not path.is_file():
            raise UserError(f"{path} does not exist: train first, or say where the weights are (ckpt_dir, ckpt_path).")
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling a damaged or foreign file raises any of several types
            raise UserError(f"{path} is not a file of weights ({type(error).__name__}: {error}).") from error
        self._compare_settings(path)
        try:
            super().__call__(engine)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} was trained with other settings than these (in_channels, num_classes, base_filters or the "
                f"network itself): {_remedy(path)}"
            ) from error

    def _compare_settings(self, path: Path) -> None:
        """Raises where the weights' own settings are known and others than those of this run."""
        try:
            trained = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # weights may come without, and then nothing is known
            return
        here = {name: plain(value) for name, value in self.settings.items() if name in trained}
        differ = [f"{name} {trained[name]}, and {value} here" for name, value in here.items() if value != trained[name]]
        if differ:
            raise UserError(f"{path} was trained with {'; with '.join(differ)}: {_remedy(path)}")


def _remedy(path: Path) -> str:
    return (
        f"add {path.with_suffix('.json')}, which training wrote beside the weights, to --config_file, or give the "
        "weights that belong to these settings as --ckpt_path."
    )
