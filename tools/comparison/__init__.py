"""Comparison: methods, numbers of labels and seeds from a plan, run, collected and tested against a baseline."""

from __future__ import annotations

from .plan import Plan, PlanError, Run, read_plan

__all__ = ["Plan", "PlanError", "Run", "read_plan"]
