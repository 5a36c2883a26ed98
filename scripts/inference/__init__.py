"""Inference: whole volumes through sliding windows, the outputs beside the mask, and cases that fail alone."""

from __future__ import annotations

from .cases import cases_of, root_of
from .continuing import InferenceRecord
from .decoding import CheckFinited, LargestComponentd, OriginalValuesd, SplitMapsd, Thresholdd, extra_maps
from .exported import HalfPrecision, OnnxNetwork, load_torchscript
from .failures import CaseLoader, TolerantDataset, TolerantEvaluator, exit_with_status
from .outcomes import Outcomes
from .outputs import SaveOutputsd, contained_name
from .predictor import Predictor, one_per_checkpoint, predictor_or_network
from .preview import SavePreviewd
from .segmenter import Segmenter
from .weights import WeightsCheckpointLoader, load_weights
from .windows import window_overlap, windows_at_once
from .writer import NiftiWriter

__all__ = [
    "CaseLoader",
    "CheckFinited",
    "HalfPrecision",
    "InferenceRecord",
    "LargestComponentd",
    "NiftiWriter",
    "OnnxNetwork",
    "OriginalValuesd",
    "Outcomes",
    "Predictor",
    "SaveOutputsd",
    "SavePreviewd",
    "Segmenter",
    "SplitMapsd",
    "Thresholdd",
    "TolerantDataset",
    "TolerantEvaluator",
    "WeightsCheckpointLoader",
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
