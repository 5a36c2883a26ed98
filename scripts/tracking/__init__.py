"""Tracking: passes what a training writes on to MLflow or TensorBoard, without the training depending on either."""

from __future__ import annotations

from .mlflow_tracking import MLflowTracking
from .tensorboard_tracking import TensorBoardTracking

__all__ = ["MLflowTracking", "TensorBoardTracking"]
