"""Errors: ends a bundle run that failed on the user's data or settings with the one message that matters."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

PACKAGES = tuple(str(Path(__file__).resolve().parents[1] / name) for name in ("scripts", "tools"))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, then what caused it, and so on to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def users_error(error: BaseException) -> BaseException | None:
    """The ValueError in the chain of ``error`` that this package raised, or a file that was not found; else None.

    Those are the errors whose message names the file or setting, the value and the remedy. Anything else may be a
    defect, for which the traceback is needed.
    """
    for cause in chain(error):
        if isinstance(cause, FileNotFoundError):
            return cause
        if isinstance(cause, ValueError) and cause.__traceback__ is not None:
            raised_in = traceback.extract_tb(cause.__traceback__)[-1].filename
            if str(Path(raised_in).resolve()).startswith(PACKAGES):
                return cause
    return None


def refused_setting(error: BaseException) -> str | None:
    """Which part of a config could not be made of which settings, and why, if MONAI's resolver ends so; else None.

    A TypeError or ValueError of the part's own arguments alone: memory that ran out is no matter of the settings' form,
    and what fails within an entry of a run list, such as the training itself, may be a defect.
    """
    cause = error.__cause__
    if not isinstance(error, RuntimeError) or not isinstance(cause, (TypeError, ValueError)):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    run_ids = [frame.f_locals.get("id") for frame in frames if frame.f_code.co_name == "_run_expr"]
    resolving = [frame.f_locals for frame in frames if frame.f_code.co_name == "_resolve_one_item"]
    if not resolving or str(resolving[-1]["id"]).split("::")[0] in run_ids:
        return None
    part = resolving[-1]
    resolver, identifier = part["self"], part["id"]
    settings = [
        f"{name.replace('::', '#')} {value!r}"
        for name in resolver.find_refs_in_config(part.get("item_config"), identifier)
        if _is_plain(value := resolver.resolved_content.get(name, resolver)) and not name.startswith(f"{identifier}::")
    ]
    of = f" of {', '.join(settings)}" if settings else ""
    kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
    return (
        f"{identifier.replace('::', '#')} cannot be made{of}: {kind}{summary(cause).rstrip('.')}. "
        "DBISL_TRACEBACK=1 shows where."
    )


def _is_plain(value: object) -> bool:
    """Whether ``value`` is what people write into a config: a number, a text, or a list of them."""
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


class Advice(str):
    """A note on an exception (``add_note``) that says what the user can do, so that no traceback is needed."""


def advice_of(error: BaseException) -> str | None:
    """What went wrong and the advice on it, from the first error in the chain of ``error`` that has any; else None."""
    for cause in chain(error):
        for note in getattr(cause, "__notes__", ()):
            if isinstance(note, Advice):
                return f"{summary(cause)}\n{note}"
        if isinstance(cause, MemoryError):
            return f"{summary(cause)}\nThe memory ran out: docs/training.md and docs/inference.md say what lowers it."
    return None


def summary(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def print_briefly() -> None:
    """Makes an uncaught error of the user's end the process with its message alone and exit status 1.

    The bundle runner wraps every error in several of its own; the message would drown in their tracebacks. Set the
    environment variable DBISL_TRACEBACK to any value to see them all. It stands first in the run lists of the configs,
    so that programs which call the trainer or evaluator themselves keep their own error handling.
    """
    default = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = advice_of(error) or users_error(error) or refused_setting(error)
        if message is None or "DBISL_TRACEBACK" in os.environ:
            default(kind, error, trace)
        else:
            print(f"\nerror: {message}", file=sys.stderr)

    sys.excepthook = hook
