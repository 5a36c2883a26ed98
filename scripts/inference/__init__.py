"""Inference: whole volumes through sliding windows, exported networks, maps beside the mask, cases that fail alone."""

from __future__ import annotations

from .exported import HalfPrecision, OnnxNetwork, load_torchscript
from .maps import SplitMapsd, WithDistance
from .outputs import contained_name
from .tolerant import TolerantDataset, TolerantEvaluator, case_or_failure
from .weights import WeightsCheckpointLoader
from .windows import window_overlap

__all__ = [
    "HalfPrecision",
    "OnnxNetwork",
    "SplitMapsd",
    "TolerantDataset",
    "TolerantEvaluator",
    "WeightsCheckpointLoader",
    "WithDistance",
    "case_or_failure",
    "contained_name",
    "load_torchscript",
    "window_overlap",
]
