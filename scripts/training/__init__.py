"""Training: the semi-supervised trainer, its handlers and schedules, and runs that continue where they stopped."""

from .checkpoints import BestWeights, FinalWeights
from .description import RunDescription
from .graphs import GraphedForward
from .guards import CollapseWarning, FiniteLoss
from .handlers import GradientNorms, ProgressBar, TermsLog
from .initial import start_from
from .overlay import InferenceOverlay
from .page import RunPage
from .pictures import TrainingPictures
from .record import RunRecord
from .resume import RunState, SaveRun, SeededIterations, run_or_resume
from .schedules import iterations_per_epoch, polynomial_decay
from .trainer import RunEvents, SemiSupervisedTrainer, trainable_parameters
from .validation_log import ValidationLog

__all__ = [
    "GraphedForward",
    "trainable_parameters",
    "BestWeights",
    "CollapseWarning",
    "FinalWeights",
    "FiniteLoss",
    "GradientNorms",
    "InferenceOverlay",
    "ProgressBar",
    "RunDescription",
    "RunEvents",
    "RunPage",
    "RunRecord",
    "RunState",
    "SaveRun",
    "SeededIterations",
    "SemiSupervisedTrainer",
    "TermsLog",
    "TrainingPictures",
    "ValidationLog",
    "iterations_per_epoch",
    "polynomial_decay",
    "run_or_resume",
    "start_from",
]
