"""Tables: CSV files, Markdown, and the titles of the metrics in both."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

METRIC_TITLES = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95_mm": "95HD (mm)",
    "asd_mm": "ASD (mm)",
    "hd95_voxel": "95HD (voxel)",
    "asd_voxel": "ASD (voxel)",
    "surface_dice": "surface Dice",
}


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file below its header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes ``rows`` below a header; None becomes a blank cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; a bar within a cell, as a class may have, is escaped."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])
