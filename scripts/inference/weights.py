"""Weights: finds what a network was trained to in a file, however it is wrapped, or says why it does not fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from torch import nn

from scripts.data import DataError
from scripts.settings import MODEL_SETTINGS

from .continuing import plain
from .exported import HalfPrecision

LFS_POINTER = b"version https://git-lfs.github.com"
# Where a run's own checkpoint has its network; that of a teacher has the same names.
OWN_CHECKPOINT = "parts.network."
SHOWN = 3

State = dict[str, torch.Tensor]


class OtherNetworkError(DataError):
    """The weights are those of a network of other parts or sizes."""


def load_weights(path: str | Path, network: nn.Module) -> None:
    """Loads a file of weights into ``network``, which must take all of them.

    The weights may be the file itself, or an entry of it at any depth ("state_dict", "model", ...), beside others; and
    their names may be those of the network behind a prefix ("module.", "_orig_mod.", ...).

    Args:
        path: written by ``torch.save``; read without running any code of it.
        network: weights of any floating precision become its own.

    Raises:
        DataError: when there is no such file, it is no file of weights, has none or several sets that fit ``network``,
            or a weight that is not finite.
    """
    state = weights_for(network, read_tensors(path), path)
    spoilt = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if spoilt:
        raise DataError(
            f"{path} has weights that are NaN or infinite, in {listed(spoilt)}: every mask would be empty. Take "
            "weights from before the training went wrong, such as model_best.pt, or train again."
        )
    network.load_state_dict(state)


def read_tensors(path: str | Path) -> State:
    """Every tensor in a file by the names that lead to it, joined by points."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{path} does not exist: train first, or say where the weights are (ckpt_dir, ckpt_path).")
    with file.open("rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(
                f"{path} is a pointer of Git LFS and not the weights themselves: run git lfs pull where it was cloned."
            )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged or foreign file raises any of several types
        raise DataError(f"{path} is not a file of weights ({type(error).__name__}: {error}).") from error
    return dict(_tensors(content, ""))


def weights_for(network: nn.Module, tensors: Mapping[str, torch.Tensor], path: str | Path) -> State:
    """Those of ``tensors`` that have the names and shapes of the weights of ``network``, by those names."""
    own = (network.network if isinstance(network, HalfPrecision) else network).state_dict()
    first = next(iter(own), "")
    # torch.compile leaves its mark in the names of parts, too.
    named = {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}
    prefixes = [name.removesuffix(first) for name in named if name == first or name.endswith(f".{first}")]
    found = {
        prefix: {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
        for prefix in prefixes
    }
    fitting = {prefix: state for prefix, state in found.items() if state.keys() == own.keys()}
    if len(fitting) > 1 and OWN_CHECKPOINT not in fitting:
        raise DataError(
            f"{path} holds several sets of weights that fit, {', '.join(map(repr, fitting))}: save the one to use as "
            "a file of its own."
        )
    if not fitting:
        closest = max(found.values(), key=lambda state: len(state.keys() & own.keys()), default=named)
        if 2 * len(closest.keys() & own.keys()) <= len(own):  # a name or two in common say nothing
            closest = named
        missing, unknown = own.keys() - closest.keys(), closest.keys() - own.keys()
        what = [f"lacks {listed(sorted(missing))}"] if missing else []
        what += [f"has {listed(sorted(unknown))}, which the network has not"] if unknown else []
        raise OtherNetworkError(
            f"{path} does not fit the {type(network).__name__}: it {' and '.join(what) or 'is empty'}."
        )
    state = fitting.get(OWN_CHECKPOINT) or next(iter(fitting.values()))
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise OtherNetworkError(
                f"{path} does not fit the {type(network).__name__}: {name} has the shape {tuple(state[name].shape)}, "
                f"and {tuple(value.shape)} in the network."
            )
    return state


def listed(names: list[str]) -> str:
    """The first names, and how many there are more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _tensors(content: Any, name: str) -> list[tuple[str, torch.Tensor]]:
    if isinstance(content, torch.Tensor):
        return [(name, content)]
    if not isinstance(content, Mapping):
        return []
    parts = [(f"{name}.{key}" if name else str(key), value) for key, value in content.items()]
    return [tensor for part, value in parts for tensor in _tensors(value, part)]


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
        run_digest: of the training whose ``model.json`` is among the config files; the weights, or one of several, must
            be its.
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
        run_digest: str | None = None,
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
        self.settings = {name: plain(value) for name, value in (settings or {}).items() if MODEL_SETTINGS[name]}
        self.run_digest = run_digest
        self.run_file = None if run_dir is None else Path(run_dir) / "run.json"
        self.pairs = list(zip(paths, networks))

    def __call__(self, engine: Engine) -> None:
        self.load()

    def load(self) -> None:
        """Loads every file into its network."""
        beside = [_read(Path(path).with_suffix(".json")) for path, _ in self.pairs]
        if self.run_digest and all(known and known.get("run_digest") != self.run_digest for known in beside):
            raise DataError(
                f"the model.json among the config files is of another training than {self.pairs[0][0]}: give the "
                "weights that lie beside it as --ckpt_path."
            )
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
        here = [(name, value) for name, value in self.settings.items() if trained.get(name, value) != value]
        differ = [f"{name} {trained[name]}, and {value} here" for name, value in here]
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
        "give the weights that belong to these settings as --ckpt_path, or, to use these weights, add "
        f"{path.with_suffix('.json')}, which training wrote beside them, to --config_file."
    )
