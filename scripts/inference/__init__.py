"""Inference: whole volumes through sliding windows, the outputs beside the mask, and cases that fail alone."""

from __future__ import annotations

from .components import LargestComponentd
from .continuing import unfinished
from .exported import HalfPrecision, OnnxNetwork, load_torchscript
from .maps import SplitMapsd, extra_maps
from .outputs import contained_name
from .predictor import Predictor, one_per_checkpoint, predictor_or_network
from .tolerant import TolerantDataset, TolerantEvaluator, case_or_failure
from .volumes import SaveVolumesd
from .weights import WeightsCheckpointLoader
from .windows import window_overlap, windows_at_once
from .writer import NiftiWriter

__all__ = [
    "HalfPrecision",
    "LargestComponentd",
    "NiftiWriter",
    "OnnxNetwork",
    "Predictor",
    "SaveVolumesd",
    "SplitMapsd",
    "TolerantDataset",
    "TolerantEvaluator",
    "WeightsCheckpointLoader",
    "case_or_failure",
    "contained_name",
    "extra_maps",
    "load_torchscript",
    "one_per_checkpoint",
    "predictor_or_network",
    "unfinished",
    "window_overlap",
    "windows_at_once",
]
