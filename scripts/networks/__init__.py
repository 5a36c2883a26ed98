"""Networks: the V-Net of the semi-supervised benchmarks with one or two decoders and two heads each."""

from __future__ import annotations

from .dual_task_vnet import DualTaskVNet
from .paired_vnet import PairedVNet
from .vnet import VNet

__all__ = ["DualTaskVNet", "PairedVNet", "VNet"]
