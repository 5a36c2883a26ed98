"""Packages: those that only some formats need."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from scripts.data import DataError


def need_package(module: str, package: str, path: Path) -> None:
    """Raises DataError unless an optional ``module`` can be imported."""
    if find_spec(module) is None:
        raise DataError(f"{path} needs the Python package {package}: pip install {package}.")
