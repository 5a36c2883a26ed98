"""Exported: TorchScript and ONNX files in the place of the network, and half precision behind a float32 interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import
from torch import nn

from scripts.errors import UserError

onnxruntime, _ = optional_import("onnxruntime")


def opened(path: str | Path, *, kind: str, command: str, read: Callable[[str], Any]) -> Any:
    """What ``read`` makes of the file ``path``.

    Raises:
        UserError: when there is none, with the ``command`` of MONAI's that makes it, or it is not of this ``kind``.
    """
    if not Path(path).is_file():
        raise UserError(
            f"{path} does not exist: make it with python -m monai.bundle {command} (docs/export.md), "
            "or say where it is (ckpt_path)."
        )
    try:
        return read(str(path))
    except Exception as error:  # onnxruntime raises types of its own, which share no base class
        raise UserError(f"{path} is not {kind} ({' '.join(str(error).split())[:200]}).") from error


def load_torchscript(path: str | Path, *, device: torch.device | str = "cpu") -> torch.jit.ScriptModule:
    """The network in a TorchScript file, in evaluation mode, for ``network_def`` of inference.json.

    Args:
        path: made by ``python -m monai.bundle ckpt_export``, by scripting or by tracing.
        device: where it runs.

    Raises:
        UserError: when the file is missing or is not TorchScript.
    """
    read = partial(torch.jit.load, map_location=device)
    return opened(path, kind="a TorchScript file", command="ckpt_export", read=read).eval()


class OnnxNetwork(nn.Module):
    """The network in an ONNX file, run by onnxruntime, for ``network_def`` of inference.json.

    Args:
        path: made by ``python -m monai.bundle onnx_export``; one input, of which the first output is returned.
        device: onnxruntime's CUDA provider is used for a CUDA device if the installed onnxruntime has it.

    Raises:
        UserError: when the file is missing or is not an ONNX model.
    """

    def __init__(self, path: str | Path, *, device: torch.device | str = "cpu") -> None:
        super().__init__()
        wanted = ["CUDAExecutionProvider"] * (torch.device(device).type == "cuda") + ["CPUExecutionProvider"]
        self.session = opened(
            path,
            kind="an ONNX model",
            command="onnx_export",
            read=lambda file: onnxruntime.InferenceSession(
                file, providers=[name for name in wanted if name in onnxruntime.get_available_providers()]
            ),
        )
        self.input_name = self.session.get_inputs()[0].name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, C, H, W, D), float32, [0, 1], on the device of ``x``.

        Args:
            x: image (B, in_channels, H, W, D), extents multiples of 16.
        """
        image = x.detach().cpu().float().contiguous().numpy()
        return torch.from_numpy(self.session.run(None, {self.input_name: image})[0]).to(x.device)


class HalfPrecision(nn.Module):
    """A network whose weights and arithmetic are float16 and whose input and output are float32, for export.

    It takes the weights of the network that it wraps, in whatever floating precision they are.

    Args:
        network: in evaluation mode returns one tensor. It is itself converted.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loads the weights of the wrapped network, whose names do not begin with "network."."""
        return self.network.load_state_dict(state_dict, *args, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, C, H, W, D), float32, [0, 1], of an image (B, in_channels, H, W, D), float32."""
        probability = self.network(x.half())
        assert isinstance(probability, torch.Tensor)  # tells TorchScript that these are not the heads
        return probability.float()
