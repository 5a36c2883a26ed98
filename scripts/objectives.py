"""Objectives: the old name of scripts.methods, for the `_target_`s of configs and model.json files made before 0.6."""

from .methods import *  # noqa: F403
