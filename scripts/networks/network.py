"""Network: base of the networks that methods train; its heads have names, and it knows how it was built."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn


class Network(nn.Module):
    """What the trainer, the objectives, inference and exports rely on.

    In training mode a call returns the heads by name, in evaluation mode one tensor (B, C, H, W, D) of foreground
    probabilities. Subclasses define ``forward`` and :meth:`forward_heads`.

    Attributes:
        arguments: name and value of every argument that the network was built with, those left at their default
            included. They are what training writes beside the weights, so that inference builds the same network.
    """

    arguments: dict[str, Any]
    # TorchScript has no type for a dictionary of any values, and the compiled network does without.
    __jit_ignored_attributes__ = ["arguments"]

    def __new__(cls, *args: Any, **kwargs: Any) -> Network:
        network = super().__new__(cls)
        # Partially, since copying a network makes one without arguments, which then receives those of the original.
        bound = inspect.signature(cls.__init__).bind_partial(network, *args, **kwargs)
        bound.apply_defaults()
        _, *arguments = bound.arguments.items()
        network.__dict__["arguments"] = dict(arguments)
        return network

    def forward_heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The heads by name, in training as in evaluation mode, of an image (B, in_channels, H, W, D)."""
        raise NotImplementedError
