"""Training: the semi-supervised trainer, its handlers and schedules, and runs that continue where they stopped."""

from __future__ import annotations

from .checkpoints import BestWeights, FinalWeights
from .handlers import GradientNorms, InferenceOverlay, ProgressBar, TermsLog
from .record import RunRecord
from .resume import RunState, SaveRun, SeededIterations, run_or_resume
from .schedules import iterations_per_epoch, polynomial_decay
from .trainer import SemiSupervisedTrainer

__all__ = [
    "BestWeights",
    "FinalWeights",
    "GradientNorms",
    "InferenceOverlay",
    "ProgressBar",
    "RunRecord",
    "RunState",
    "SaveRun",
    "SeededIterations",
    "SemiSupervisedTrainer",
    "TermsLog",
    "iterations_per_epoch",
    "polynomial_decay",
    "run_or_resume",
]
