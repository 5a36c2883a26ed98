"""Objectives: what each semi-supervised method minimises, as named and weighted terms."""

from __future__ import annotations

from .cct import CCTObjective
from .dan import DANObjective
from .dbisl import DBiSLObjective
from .dtc import DTCObjective
from .dtml import DTMLObjective
from .dual_networks import DualNetworksObjective
from .entropy_minimization import EntropyMinimizationObjective
from .mc_net import MCNetObjective
from .mean_teacher import MeanTeacherObjective
from .objective import Loss, Objective
from .ramps import GaussianRampUp
from .sassnet import SASSNetObjective
from .supervised import SupervisedObjective
from .ua_mt import UAMTObjective
from .urpc import URPCObjective

__all__ = [
    "CCTObjective",
    "DANObjective",
    "DBiSLObjective",
    "DTCObjective",
    "DTMLObjective",
    "DualNetworksObjective",
    "EntropyMinimizationObjective",
    "GaussianRampUp",
    "Loss",
    "MCNetObjective",
    "MeanTeacherObjective",
    "Objective",
    "SASSNetObjective",
    "SupervisedObjective",
    "UAMTObjective",
    "URPCObjective",
]
