"""Inference: whole volumes through sliding windows, the maps beside the mask, and cases that fail alone."""

from __future__ import annotations

from .maps import SplitMapsd, WithDistance
from .tolerant import TolerantDataset, TolerantEvaluator, case_or_failure
from .weights import WeightsCheckpointLoader
from .windows import window_overlap
from .writer import NiftiWriter

__all__ = [
    "NiftiWriter",
    "SplitMapsd",
    "TolerantDataset",
    "TolerantEvaluator",
    "WeightsCheckpointLoader",
    "WithDistance",
    "case_or_failure",
    "window_overlap",
]
