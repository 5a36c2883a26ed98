"""State: finds the weights of a network in a file, however the program that wrote it has wrapped them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.data import DataError

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
    found = {prefix: _behind(prefix, named) for prefix in prefixes}
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


def _behind(prefix: str, tensors: Mapping[str, torch.Tensor]) -> State:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
