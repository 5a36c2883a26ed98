"""Graphs: records the network's forward and backward pass once as CUDA graphs and replays them in every step."""

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn


class _Forward(nn.Module):
    """The network's training forward pass as a separate module, because recording replaces a module's ``forward``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.network(image)


class GraphedForward(Inferer):
    """Replays the network's kernels instead of launching them one by one, if launches take longer than the kernels.

    A pass is recorded for every shape of input that occurs, which a training has one or two of. On a CPU and in
    evaluation mode the network is called as usual. Not for methods that run encoder and decoder apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recorded: dict[tuple[int, ...], Callable[..., Any]] = {}

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not isinstance(network, nn.Module) or inputs.device.type != "cuda" or not network.training:
            return network(inputs)
        shape = tuple(inputs.shape)
        if shape not in self.recorded:
            self.recorded[shape] = self._record(network, inputs)
        return self.recorded[shape](inputs)

    def _record(self, network: nn.Module, inputs: torch.Tensor) -> Callable[..., Any]:
        # The passes that warm up must leave no trace in running statistics.
        buffers = [buffer.clone() for buffer in network.buffers()]
        # Weights cast to half precision outside of the graph would be missing in it.
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", enabled=enabled, dtype=dtype, cache_enabled=False):
            recorded = torch.cuda.make_graphed_callables(_Forward(network), (inputs.detach().clone(),))
        with torch.no_grad():
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)
        return recorded
