"""Training: the semi-supervised trainer, its handlers and its schedules."""

from __future__ import annotations

from .handlers import GradientNorms, InferenceOverlay, ProgressBar, TermsLog
from .record import RunRecord
from .schedules import iterations_per_epoch, polynomial_decay
from .trainer import SemiSupervisedTrainer

__all__ = [
    "GradientNorms",
    "InferenceOverlay",
    "ProgressBar",
    "RunRecord",
    "SemiSupervisedTrainer",
    "TermsLog",
    "iterations_per_epoch",
    "polynomial_decay",
]
