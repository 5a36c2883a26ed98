"""Networks: what the methods train, from the V-Net of the benchmarks to two decoders over MONAI's networks."""

from .cross_consistency_vnet import CrossConsistencyVNet
from .discriminator import Discriminator
from .dual_networks import DualNetworks
from .dual_task import DualTaskNetwork
from .dual_task_monai import DualTaskDynUNet, DualTaskSegResNet
from .dual_task_vnet import DualTaskVNet
from .network import Network
from .normalization import ReestimatedStatistics, separate_streams, synchronize_batch_norm
from .pyramid_vnet import PyramidVNet
from .twin_vnet import PairedVNet, TwinVNet
from .vnet import VNet

__all__ = [
    "CrossConsistencyVNet",
    "Discriminator",
    "DualNetworks",
    "DualTaskDynUNet",
    "DualTaskNetwork",
    "DualTaskSegResNet",
    "DualTaskVNet",
    "Network",
    "PairedVNet",
    "PyramidVNet",
    "ReestimatedStatistics",
    "TwinVNet",
    "VNet",
    "separate_streams",
    "synchronize_batch_norm",
]
