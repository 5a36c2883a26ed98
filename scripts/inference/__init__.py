"""Inference: whole volumes through sliding windows, the outputs beside the mask, and cases that fail alone."""

from __future__ import annotations

from .case_log import CaseLog, exit_with_status
from .cases import cases_of, root_of
from .components import LargestComponentd
from .continuing import InferenceRecord
from .decoding import OriginalValuesd, Thresholdd
from .exported import HalfPrecision, OnnxNetwork, load_torchscript
from .maps import CheckFinited, SplitMapsd, extra_maps
from .outputs import contained_name
from .predictor import Predictor, one_per_checkpoint, predictor_or_network
from .preview import SavePreviewd
from .segmenter import Segmenter
from .state import load_weights
from .tolerant import TolerantDataset, TolerantEvaluator, case_or_failure
from .volumes import SaveVolumesd
from .weights import WeightsCheckpointLoader
from .windows import window_overlap, windows_at_once
from .writer import NiftiWriter

__all__ = [
    "CaseLog",
    "CheckFinited",
    "HalfPrecision",
    "InferenceRecord",
    "LargestComponentd",
    "NiftiWriter",
    "OnnxNetwork",
    "OriginalValuesd",
    "Predictor",
    "SavePreviewd",
    "SaveVolumesd",
    "Segmenter",
    "SplitMapsd",
    "Thresholdd",
    "TolerantDataset",
    "TolerantEvaluator",
    "WeightsCheckpointLoader",
    "case_or_failure",
    "cases_of",
    "contained_name",
    "exit_with_status",
    "extra_maps",
    "load_torchscript",
    "load_weights",
    "one_per_checkpoint",
    "predictor_or_network",
    "root_of",
    "window_overlap",
    "windows_at_once",
]
