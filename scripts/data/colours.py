"""Colours: colours of the classes for pictures, reports and viewers, and the colour table of 3D Slicer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.files import replacing

# Okabe & Ito's colours, which those who see red and green alike tell apart too.
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442")


def class_colours(count: int) -> list[str]:
    """The colours of ``count`` classes as "#RRGGBB", in order; they repeat after seven."""
    return [CLASS_COLOURS[c % len(CLASS_COLOURS)] for c in range(count)]


def write_colour_table(path: str | Path, class_names: Sequence[str], label_values: Sequence[int] | None = None) -> None:
    """Writes a colour table for 3D Slicer, with a line "value name red green blue opacity" for every label value.

    Args:
        path: ends in ``.ctbl``, by which Slicer knows it.
        class_names: of the classes; spaces become underscores, since the columns are separated by spaces.
        label_values: of the classes in the masks; 1, 2, ... by default.
    """
    values = label_values or range(1, len(class_names) + 1)
    lines = ["# names and colours of the label values of the masks in this folder", "0 background 0 0 0 0"]
    for value, name, colour in zip(values, class_names, class_colours(len(class_names))):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        lines.append(f"{value} {'_'.join(name.split())} {red} {green} {blue} 255")
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
