"""Networks: the V-Net of the semi-supervised benchmarks with one or more decoders and their heads."""

from __future__ import annotations

from .cross_consistency_vnet import CrossConsistencyVNet
from .dual_task_vnet import DualTaskVNet
from .pyramid_vnet import PyramidVNet
from .vnet import VNet

__all__ = ["CrossConsistencyVNet", "DualTaskVNet", "PyramidVNet", "VNet"]
