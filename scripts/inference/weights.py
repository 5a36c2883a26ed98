"""Weights: loads what a network was trained to, for volumes prepared as in its training, or says why it cannot."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.handlers import CheckpointLoader

from scripts.data import DataError
from scripts.settings import MODEL_SETTINGS

from .continuing import plain
from .state import OtherNetworkError, load_weights


class WeightsCheckpointLoader(CheckpointLoader):
    """MONAI's CheckpointLoader by :func:`load_weights`, whose errors name the remedy.

    The name has to contain "CheckpointLoader": by that MONAI's federated client recognises the handlers that it must
    switch off, so as not to overwrite the weights of a round.

    Args:
        load_path: file of weights; a list of them for an ensemble.
        load_dict: one name and the network to load into; for an ensemble a list of as many networks.
        settings: config ids and their values, of this run. Those by which a volume is prepared
            (``scripts.settings.MODEL_SETTINGS``) must be those in the file that training writes beside its weights,
            ``model.json`` for ``model.pt``, where it names them: with another spacing or intensity window a network
            segments without an error, and wrongly.
        run_dir: output folder of the run that is evaluated. Where both are known, the digest in its ``run.json`` must
            be that of the weights: another training may have written to the same ``ckpt_dir`` since.

    Raises:
        DataError: when there are not as many files as networks; when the engine starts and a file was trained with
            other ``settings``, or :func:`load_weights` refuses it.
    """

    def __init__(
        self,
        *,
        load_path: str | Sequence[str],
        load_dict: dict[str, Any],
        settings: Mapping[str, Any] | None = None,
        run_dir: str | Path | None = None,
    ) -> None:
        paths = [load_path] if isinstance(load_path, str) else list(load_path)
        super().__init__(load_path=next(iter(paths), ""), load_dict=load_dict)
        ((_, networks),) = load_dict.items()
        networks = list(networks) if isinstance(networks, (list, tuple)) else [networks]
        if len(paths) != len(networks):
            raise DataError(
                f"load_path has {len(paths)} file(s) and load_dict {len(networks)} network(s): give as many."
            )
        self.settings = dict(settings or {})
        self.run_file = None if run_dir is None else Path(run_dir) / "run.json"
        self.pairs = list(zip(paths, networks))

    def __call__(self, engine: Engine) -> None:
        self.load()

    def load(self) -> None:
        """Loads every file into its network."""
        for path, network in self.pairs:
            self._compare(Path(path))
            try:
                load_weights(path, network)
            except OtherNetworkError as error:
                raise DataError(f"{error} Its settings may be others than these: {_remedy(Path(path))}") from error
            logging.getLogger(__name__).info("weights: %s", path)

    def _compare(self, path: Path) -> None:
        """Raises where the weights' own settings or run are known and others than these."""
        trained = _read(path.with_suffix(".json"))  # weights may come without, and then nothing is known
        names = [name for name in self.settings if MODEL_SETTINGS[name] and name in trained]
        here = {name: plain(self.settings[name]) for name in names}
        differ = [f"{name} {trained[name]}, and {value} here" for name, value in here.items() if value != trained[name]]
        if differ:
            raise DataError(f"{path} was trained with {'; with '.join(differ)}: {_remedy(path)}")
        run = None if self.run_file is None else _read(self.run_file).get("digest")
        of_weights = trained.get("run_digest")
        if run and of_weights and run != of_weights:
            raise DataError(
                f"{path} is of the run {of_weights} and {self.run_file} describes the run {run}: another training has "
                "written there since. Give the weights of this run as --ckpt_path, or another --output_dir to evaluate "
                "those."
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remedy(path: Path) -> str:
    return (
        f"add {path.with_suffix('.json')}, which training wrote beside the weights, to --config_file, or give the "
        "weights that belong to these settings as --ckpt_path."
    )
