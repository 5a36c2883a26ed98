"""Initial weights: a network starts from the weights of another run, as far as they fit."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from monai.networks import copy_model_state
from torch import nn

from scripts.data import DataError

logger = logging.getLogger(__name__)


def start_from(network: nn.Module, path: str | Path | None, checkpoints: str | Path | None = None) -> nn.Module:
    """Loads into the network every tensor of a weights file that matches one of its own in name and shape.

    The other run may have had other classes or channels: the layers that depend on them stay as they were made. The log
    says which tensors were taken, which were not, and why.

    Args:
        network: changed in place. Teachers are copies of it, so they start from the same weights.
        path: such as the ``model.pt`` of the other run; None leaves the network as it is.
        checkpoints: folder of the run's own checkpoints. A run that continues takes its weights from there, so that
            ``path`` need not exist any more.

    Raises:
        DataError: when there is no such file, it holds no weights, a weight is not finite, or none fits.
    """
    if path is None:
        return network
    if not Path(path).is_file() and checkpoints is not None and any(Path(checkpoints).glob("*iteration_*.pt")):
        logger.warning("initial_weights %s does not exist; the run goes on from its own checkpoints.", path)
        return network
    given = _read(Path(path))
    own = {name: value.shape for name, value in network.state_dict().items()}
    _, taken, kept = copy_model_state(network, given)
    if not taken:
        raise DataError(
            f"none of the {len(given)} tensors of initial_weights {path} fits one of the {len(own)} of the "
            f"{type(network).__name__}: give those of the same network and base_filters, or leave initial_weights out."
        )
    named = "" if len(taken) == len(own) else f": {', '.join(taken)}"
    logger.info("initial weights: %d of %d tensors are from %s%s", len(taken), len(own), path, named)
    for name in kept:
        why = f"it is {tuple(given[name].shape)} in the file" if name in given else "the file has none of that name"
        logger.info("initial weights: %s %s stays as it was made: %s", name, tuple(own[name]), why)
    for name in sorted(given.keys() - own.keys()):
        logger.info("initial weights: %s of the file is left out: the network has none of that name", name)
    return network


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise DataError(f"initial_weights {path} does not exist: give the model.pt of a training.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged or foreign file raises any of several types
        raise DataError(
            f"initial_weights {path} is not a file of weights ({type(error).__name__}: {error})."
        ) from error
    tensors = content if isinstance(content, Mapping) else {}
    state = {str(name): value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    spoilt = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if spoilt:
        raise DataError(f"initial_weights {path} has {spoilt[0]} that is NaN or infinite: give other weights.")
    return state
