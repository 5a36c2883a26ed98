"""Evaluation: the papers' metrics, per case and per class."""

from .case_metrics import CaseMetrics, summarize
from .metrics import METRIC_NAMES, segmentation_metrics
