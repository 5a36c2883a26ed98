"""Objectives: what each semi-supervised method minimises, as named and weighted terms."""

from __future__ import annotations

from .dan import DANObjective
from .dbisl import DBiSLObjective
from .dtc import DTCObjective
from .dtml import DTMLObjective
from .dual_networks import DualNetworksObjective
from .objective import Loss, Objective
from .ramps import GaussianRampUp
from .sassnet import SASSNetObjective
from .supervised import SupervisedObjective

__all__ = [
    "DANObjective",
    "DBiSLObjective",
    "DTCObjective",
    "DTMLObjective",
    "DualNetworksObjective",
    "GaussianRampUp",
    "Loss",
    "Objective",
    "SASSNetObjective",
    "SupervisedObjective",
]
