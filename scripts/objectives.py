"""Objectives: the old name of scripts.methods, for `_target_`s in configs and model.json files from before 0.6."""

from .methods import *  # noqa: F403
