"""Preflight: everything that can be found wrong with a data set and this machine before a training starts."""

from __future__ import annotations

from .preflight import Preflight
from .report import Report

__all__ = ["Preflight", "Report"]
