"""Objectives: what each semi-supervised method minimises, as named and weighted terms."""

from .ad_mt import ADMTObjective
from .bcp import BCPObjective
from .cct import CCTObjective
from .cps import CPSObjective
from .dan import DANObjective
from .dbisl import DBiSLObjective
from .dbisl_mixed import DBiSLMixedObjective
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
from .unimatch import UniMatchObjective
from .urpc import URPCObjective

__all__ = [
    "ADMTObjective",
    "BCPObjective",
    "CCTObjective",
    "CPSObjective",
    "DANObjective",
    "DBiSLMixedObjective",
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
    "UniMatchObjective",
]
