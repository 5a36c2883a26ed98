"""Network: base of the networks that methods train; its heads have names, and it knows how it was built."""

from __future__ import annotations

import inspect
from typing import Any, Union

import torch
from torch import nn


class Network(nn.Module):
    """What the trainer, the objectives, inference and exports rely on.

    A call returns the heads by name in training mode and one tensor of foreground probabilities in evaluation mode, so
    that every client of MONAI can run it. Subclasses define :meth:`forward_heads` and :meth:`probability`.

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
        """The heads by name, in training as in evaluation mode.

        Args:
            x: image (B, in_channels, H, W, D), extents multiples of what the network's levels divide them by.

        Returns:
            Those that the network has, float: ``logits`` or ``logits_<decoder>``, segmentation before the sigmoid
            (B, C, H, W, D) or before the softmax (B, C + 1, H, W, D), background first; ``distance`` or
            ``distance_<decoder>`` (B, C, H, W, D), signed, in [-1, 1], negative inside the object.

        Raises:
            ValueError: when the channels or extents of ``x`` do not fit.
        """
        raise NotImplementedError

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """Foreground probabilities (B, C, H, W, D), float, [0, 1], of an image as for :meth:`forward_heads`.

        Heads that do not contribute are not run.
        """
        raise NotImplementedError

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features of an image, for methods that perturb them; :meth:`decode` makes the heads of them."""
        raise NotImplementedError(f"{type(self).__name__} gives no features away; VNet and DualTaskVNet do.")

    def decode(self, encoded: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The heads from what :meth:`encode` returned."""
        raise NotImplementedError(f"{type(self).__name__} takes no features; VNet and DualTaskVNet do.")

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, dict[str, torch.Tensor]]:
        """:meth:`forward_heads` in training mode, :meth:`probability` in evaluation mode."""
        if self.training:
            return self.forward_heads(x)
        return self.probability(x)
