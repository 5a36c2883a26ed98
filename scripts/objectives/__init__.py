"""Objectives: what each semi-supervised method minimises, as named and weighted terms."""

from __future__ import annotations

from .cct import CCTObjective
from .dbisl import DBiSLObjective
from .entropy_minimization import EntropyMinimizationObjective
from .mc_net import MCNetObjective
from .mean_teacher import MeanTeacherObjective
from .objective import Loss, Objective
from .ramps import GaussianRampUp
from .supervised import SupervisedObjective
from .ua_mt import UAMTObjective
from .urpc import URPCObjective

__all__ = [
    "CCTObjective",
    "DBiSLObjective",
    "EntropyMinimizationObjective",
    "GaussianRampUp",
    "Loss",
    "MCNetObjective",
    "MeanTeacherObjective",
    "Objective",
    "SupervisedObjective",
    "UAMTObjective",
    "URPCObjective",
]
