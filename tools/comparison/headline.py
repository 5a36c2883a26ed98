"""Headline: the share of the gap to all labels that each method closes, and what draws and seeds do to the figures."""

from collections.abc import Sequence
from typing import Any

from scripts.evaluation.summary import ALL_CLASSES
from tools.tables import markdown_table

from .plan import Plan

UNKNOWN = "cannot be told"


def number(value: float | None, digits: int, *, signed: bool = False) -> str:
    """``value`` for a table; "-" for None."""
    return "-" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def overall(classes: Sequence[str]) -> str:
    """The class that stands for all: their mean, or the only one."""
    return ALL_CLASSES if ALL_CLASSES in classes else classes[0]


def dice_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the rows of comparison.csv those of Dice, of all classes together."""
    name = overall([row["class"] for row in rows]) if rows else ""
    return [row for row in rows if row["metric"] == "dice" and row["class"] == name]


def gap_lines(plan: Plan, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table of shares of comparison.md, from the rows of comparison.csv: methods by numbers of labels.

    Where the room is not larger than its error no share is given, and a warning says so.
    """
    if plan.ceiling is None:
        return ["No share of the gap to all labels is known: the plan names no `ceiling`.", ""]
    found = {(row["method"], row["num_labeled"]): row for row in dice_rows(rows) if row.get("room") is not None}
    starts = {labels: row for (method, labels), row in found.items() if method == plan.baseline}
    if not starts:
        return [f"No share of the gap to all labels is known yet: it takes {plan.baseline} and {plan.ceiling}.", ""]
    columns = [f"{n} labels (draws: {row['draws']}, runs: {row['runs']})" for n, row in starts.items()]
    lines = [
        f"**Share of the gap in Dice** between {plan.baseline} (0 %) and {plan.ceiling} (100 %) that is closed, with "
        "its 95 % interval over cases and draws of the labeled cases (cases and seeds, where there is one draw; cases "
        "alone, where there is one run).",
        "",
    ]
    shares = {name: [_share(found.get((name, n))) for n in starts] for name in plan.methods if name != plan.baseline}
    table = [[f"room: {plan.ceiling} - {plan.baseline}", *map(_room, starts.values())]]
    table += [[name, *cells] for name, cells in shares.items() if any(cell != "-" for cell in cells)]
    lines.append(markdown_table(["method", *columns], table))
    narrow = [f"{labels} labels ({_room(row)})" for labels, row in starts.items() if row["gap_closed"] is None]
    if narrow:
        lines += [
            "",
            f"**Warning: no room** with {' and '.join(narrow)}: these cases and runs cannot tell {plan.ceiling} from "
            f"{plan.baseline}, and so no method's share of what lies between. Take fewer labels, or more test cases "
            "and draws.",
        ]
    return [*lines, ""]


def _room(row: dict[str, Any]) -> str:
    return f"{number(row['room'], 3, signed=True)} +- {number(row['room_error'], 3)}"


def _share(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["gap_closed"] is None:
        return "no room"
    interval = "without bounds" if row["gap_low"] is None else f"{row['gap_low']:.0%} to {row['gap_high']:.0%}"
    return f"{row['gap_closed']:.0%} ({interval})".replace("%", " %")


def spread_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What of the spread of a method's Dice comes from the draw of the labeled cases and what from the seed."""
    rows = dice_rows(rows)
    if not any(row["runs"] > 1 for row in rows):
        return [
            "How far another draw of the labeled cases or another seed would move a figure cannot be told: one run.",
            "",
        ]
    lines = [
        "**Spread of Dice**: standard deviation between draws of the labeled cases and between seeds of a draw, and "
        "the share of a run's variance that the draws explain. Only two seeds in a draw can tell them apart.",
        "",
    ]
    table = []
    for row in rows:
        draws, seeds = row["std_draws"], row["std_seeds"]
        both = draws is not None and seeds is not None and draws + seeds > 0
        cells = [UNKNOWN if value is None else number(value, 4) for value in (draws, seeds)]
        cells.append(f"{draws**2 / (draws**2 + seeds**2):.0%}".replace("%", " %") if both else UNKNOWN)
        table.append([*(row[key] for key in ("method", "num_labeled", "draws", "runs")), *cells])
    header = ["method", "labels", "draws", "runs", "between draws", "between seeds", "explained by draws"]
    return [*lines, markdown_table(header, table), ""]
