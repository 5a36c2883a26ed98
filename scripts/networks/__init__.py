"""Networks: the V-Net of the semi-supervised benchmarks with one or two decoders and two heads each."""

from __future__ import annotations

from .discriminator import Discriminator
from .dual_task_vnet import DualTaskVNet
from .vnet import VNet

__all__ = ["Discriminator", "DualTaskVNet", "VNet"]
