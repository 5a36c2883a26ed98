"""Errors: shows one message, not a traceback, when a run fails because of the user's data or settings."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from types import TracebackType

REPORT = "\nThis is a defect of the bundle: please report it to its repository, with the lines above and the command."


class UserError(ValueError):
    """An error that the user can correct: a setting, file or command. Its message names it, the value and the remedy.

    Every error that is the user's derives from it; any other is taken for a defect of ours and keeps its traceback.
    """


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, then its cause, and so on to the first cause."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def users_error(error: BaseException) -> BaseException | None:
    """The UserError in the chain of ``error``, or a file that was not found; else None."""
    return next((cause for cause in chain(error) if isinstance(cause, (UserError, FileNotFoundError))), None)


class Advice(str):
    """A note on an exception (``add_note``) that tells the user what to do; no traceback is shown then."""


def advice_of(error: BaseException) -> str | None:
    """The message and the advice of the first error in the chain of ``error`` that has advice; else None."""
    for cause in chain(error):
        for note in getattr(cause, "__notes__", ()):
            if isinstance(note, Advice):
                return f"{summary(cause)}\n{note}"
        if isinstance(cause, MemoryError):
            return f"{summary(cause)}\nThe memory ran out: docs/training.md and docs/inference.md say what lowers it."
    return None


def summary(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has no message."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def print_briefly() -> None:
    """Makes an uncaught user's error end the process with only its message and exit status 1.

    The bundle runner wraps every error in several of its own; the message would drown in their tracebacks. Set the
    environment variable DBISL_TRACEBACK to any value to see them all. Anything else keeps its traceback, followed by a
    line that asks to report it. Output is UTF-8 whatever the locale.
    """
    default = sys.excepthook
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            return
        message = advice_of(error) or users_error(error)
        if message is None or "DBISL_TRACEBACK" in os.environ:
            default(kind, error, trace)
            if message is None and isinstance(error, Exception):
                print(REPORT, file=sys.stderr)
        else:
            print(f"\nerror: {message}", file=sys.stderr)

    sys.excepthook = hook
