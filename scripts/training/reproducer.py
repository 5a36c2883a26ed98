"""Reproducer: saves a training step with its crops and weights, to investigate a non-finite loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.methods import Loss, Objective
from scripts.ranks import rank

from .checkpoints import save_atomically
from .resume import seed_iteration


def save_reproducer(trainer: Any, path: str | Path, *, seed: int) -> None:
    """Saves the current step of ``trainer``, before the optimiser changes anything.

    The file loads with ``weights_only`` and holds: iteration (counted from 1), seed, process (its rank, whose crops the
    file has), files (stream -> images of the crops), targets (what the objective's ``views`` returned), terms and
    weights of the loss, network and objective (state dicts; running averages of BatchNorm are those after the step's
    forward pass).

    Args:
        trainer: a :class:`~scripts.training.SemiSupervisedTrainer`, from an event within an iteration.
        path: of the file.
        seed: of the run.

    Raises:
        OSError: when it cannot be written.
    """
    loss: Loss = trainer.state.loss
    content = {
        "iteration": trainer.state.iteration,
        "seed": seed,
        "process": rank(),
        "files": trainer.state.files,
        "targets": {str(key): _plain(value) for key, value in trainer.state.output["label"].items()},
        "terms": {name: value.item() for name, value in loss.terms.items()},
        "weights": dict(loss.weights),
        "network": trainer.network.state_dict(),
        "objective": trainer.objective.state_dict(),
    }
    save_atomically(content, Path(path))


def _plain(value: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU without MONAI's metadata, which does not load with weights_only."""
    return value.detach().as_subclass(torch.Tensor).cpu()


def replay(path: str | Path, network: nn.Module, objective: Objective) -> Loss:
    """Forward pass of a saved step; the loss keeps its graph, so ``loss.terms[...]`` can be differentiated.

    Args:
        path: a file of :func:`save_reproducer`.
        network: as configured for the run; its weights are replaced, and it stays in training mode.
        objective: as configured for the run; its state is replaced.

    Example:
        >>> parser = ConfigParser()                       # the config files and overrides of the run
        >>> parser.read_config(["configs/train.json"])
        >>> network, objective = (parser.get_parsed_content(name) for name in ("network", "objective"))
        >>> replay("outputs/reproducer/iteration_00000012.pt", network, objective).terms
    """
    step = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(step["network"])
    objective.load_state_dict(step["objective"])
    device = next(network.parameters()).device
    targets = {key: value.to(device) for key, value in step["targets"].items()}
    seed_iteration(step["seed"], step["iteration"], process=step["process"])
    return objective(objective.predict(network.train(), targets["image"]), targets, step["iteration"] - 1)
