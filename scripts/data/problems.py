"""Problems: errors in the user's data; the message names the file, the value and the remedy."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.errors import UserError


class DataError(UserError):
    """An error in the user's data or its description; the message names the file, the value and the remedy."""


@dataclass(frozen=True)
class Problem:
    """One finding about one file.

    Args:
        check: what was checked, as docs/preflight.md lists it.
        file: the file, or the setting where there is none.
        what: the rest of the sentence, with the value found.
        remedy: what to do, without a full stop.
        level: "error" for what a run cannot or must not go on with, else "warning".
    """

    check: str
    file: str
    what: str
    remedy: str
    level: str = "error"

    def __str__(self) -> str:
        # A file name may hold bytes that are no text; they must not make the message itself fail.
        text = f"{self.file} {self.what}: {self.remedy}."
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


class FileError(DataError):
    """A file that cannot be used for any purpose; ``problem`` gives the reason."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem

    def __reduce__(self) -> tuple:
        return FileError, (self.problem,)
