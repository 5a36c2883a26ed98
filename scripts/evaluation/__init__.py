"""Evaluation: the papers' metrics, per case and per class."""

from .case_metrics import CaseMetrics
from .metrics import METRIC_NAMES, segmentation_metrics
from .summary import summarize

__all__ = ["METRIC_NAMES", "CaseMetrics", "segmentation_metrics", "summarize"]
