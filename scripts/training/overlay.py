"""Overlay: the settings of the training of some weights, as an overlay of the inference config."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from scripts.files import write_text
from scripts.networks import Network

from .description import RunDescription


class InferenceOverlay:
    """The settings that inference shares with the training, for every method.

    ``run inference --config_file "['configs/inference.json','<ckpt_dir>/model.json']"`` segments with the same network,
    spacing and intensity scaling without repeating any of them.

    Args:
        settings: config ids of inference.json and their values.
        network: what is trained; becomes the id ``network_def``, see :func:`definition`. One that is not a
            :class:`~scripts.networks.Network` does not know how it was built and is left to an overlay of the user's.
        description: of the run, whose digest becomes the id ``run_digest``; None leaves it out.
    """

    def __init__(
        self, settings: Mapping[str, Any], network: nn.Module, description: RunDescription | None = None
    ) -> None:
        self.settings = dict(settings)
        self.description = description
        if isinstance(network, Network):
            self.settings["network_def"] = definition(network, settings)

    def write(self, path: Path) -> None:
        """Writes ``path``, a JSON file, completely or not at all."""
        run = {} if self.description is None else {"run_digest": self.description.digest}
        write_text(path, json.dumps({**self.settings, **run}, indent=4) + "\n")


def definition(network: Network, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config that builds ``network`` again: ``_target_`` and every argument.

    An argument that has the name and the value of one of ``settings`` refers to it (``"@base_filters"``), so that the
    value stands in one place; the others are literal.
    """
    cls = type(network)
    package = cls.__module__.rpartition(".")[0]
    # By its public name, as the configs have it, where the package exports it.
    public = getattr(sys.modules.get(package), cls.__qualname__, None) is cls
    content: dict[str, Any] = {"_target_": f"{package if public else cls.__module__}.{cls.__qualname__}"}
    for name, value in network.arguments.items():
        content[name] = f"@{name}" if name in settings and settings[name] == value else value
    return content
