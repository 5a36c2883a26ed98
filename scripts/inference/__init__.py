"""Inference: sliding windows over whole volumes, and the maps that can be written beside the mask."""

from __future__ import annotations

from .windows import window_overlap

__all__ = ["window_overlap"]
