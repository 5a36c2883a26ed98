"""Report: the problems of a preflight, as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.data import DataError, Problem

# The console shows this many problems of one kind; the files have them all.
SHOWN = 10


@dataclass
class Report:
    """What a preflight found.

    Args:
        overview: facts about the data set and the machine, by name.
        problems: errors and warnings, in the order of the cases.
    """

    overview: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.level == "warning"]

    def text(self, *, shown: int | None = None) -> str:
        """The report in lines.

        Args:
            shown: problems listed of each kind; the others are counted. None lists all.
        """
        width = max((len(name) for name in self.overview), default=0)
        lines = ["Preflight", *(f"  {name:<{width}}  {_plain(value)}" for name, value in self.overview.items())]
        for title, problems in (("errors", self.errors), ("warnings", self.warnings)):
            if problems:
                lines += ["", f"{len(problems)} {title if len(problems) > 1 else title[:-1]}"]
                lines += _listed(problems, shown)
        if not self.problems:
            lines += ["", "no problems"]
        return "\n".join(lines) + "\n"

    def write(self, output_dir: str | Path) -> Path:
        """Writes preflight.json and preflight.txt, complete, into ``output_dir`` and returns the path of the text.

        Raises:
            DataError: when that folder cannot be written.
        """
        folder = Path(output_dir)
        content = {
            "overview": self.overview,
            "errors": [asdict(problem) for problem in self.errors],
            "warnings": [asdict(problem) for problem in self.warnings],
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "preflight.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
            (folder / "preflight.txt").write_text(self.text(), encoding="utf-8")
        except OSError as error:
            raise DataError(f"output_dir {folder} cannot be written ({error}): choose another folder.") from error
        return folder / "preflight.txt"


def _listed(problems: Iterable[Problem], shown: int | None) -> list[str]:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.check, []).append(problem)
    lines = []
    for check, same in kinds.items():
        lines += [f"  [{check}] {problem}" for problem in same[:shown]]
        if len(same) > len(same[:shown]):
            lines.append(f"  [{check}] and {len(same[shown:])} more")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(count)}" for name, count in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return " ".join(_plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
