"""Progress: who carries out a run, how far it is, and how long it and the rest of a comparison will take."""

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .cases import named
from .collect import failed_cases
from .planned_run import Run

try:
    import fcntl
except ImportError:  # Windows has none: nothing is locked there.
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
# Of the time of a run, as long as nothing better is known; the rest is its evaluation.
TRAINING = 0.9
# Seconds between two lines: on a terminal, where one replaces the other, and in a file.
ON_TERMINAL, IN_FILE = 2, 300
CLEAR = "\x1b[2K"


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Holds the lock of a run's folder, which is made, and gives its file descriptor.

    That is None where another process holds the lock, and -1 where the system has no locks. A process that inherits the
    descriptor holds the lock until it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        held = _lock(file.fileno())
        if not held:
            time.sleep(0.2)  # it may have been another process's short look at the lock
            held = _lock(file.fileno())
        yield (file.fileno() if fcntl else -1) if held else None


def _lock(descriptor: int) -> bool:
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        warnings.warn(f"this file system has no locks ({error}): start no second process on this plan", stacklevel=2)
    return True


def iterations(run: Run) -> tuple[int, int, float] | None:
    """Iterations that a training has logged, how many it will have and the seconds it took; None if not known."""
    log, description = run.folder / "training_log.csv", run.folder / "run.json"
    try:
        config = json.loads(description.read_text(encoding="utf-8"))["config"]
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            iteration, seconds = file.read().decode("utf-8").splitlines()[-1].split(",")[:2]
        return int(iteration), int(config["max_iterations"]), float(seconds)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        # Not begun, half a line, or an expression in place of the number: no progress is shown, and nothing is wrong.
        return None


def fraction(run: Run) -> float:
    """How much of a run is done, 0 to ``TRAINING``: its evaluation counts when it is over."""
    if run.trained or run.finished:
        return TRAINING
    done = iterations(run) if run.begun or (run.folder / "run.log").is_file() else None
    return TRAINING * min(1.0, done[0] / max(1, done[1])) if done else 0.0


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def going(run: Run) -> str:
    """What a run that is being carried out does."""
    if run.trained or run.finished:
        return "evaluation"
    if not (done := iterations(run)):
        return "starting"
    iteration, planned, seconds = done
    left = duration(seconds / iteration * (planned - iteration))
    return f"iteration {iteration} of {planned}, {left} left"


def state(run: Run) -> str:
    """The line of a run for ``--list``."""
    if (run.folder / LOCK).is_file():
        with locked(run.folder) as lock:
            if lock is None:
                return f"being carried out: {going(run)}"
    if run.finished:
        failed = failed_cases(run)
        return f"finished, without the cases that failed: {named(failed)}" if failed else "finished"
    if run.trained:
        return "trained, not evaluated"
    if (run.folder / "run.log").is_file():
        done = iterations(run) if run.begun else None
        return f"stopped{f' at iteration {done[0]} of {done[1]}' if done else ''}; run.log says why"
    return "not begun"


class Progress:
    """Says on standard output what happens to ``runs``, and now and then how long they will still take.

    The time left of all is that of the work left at the pace so far, a run counting as much as any other.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._waiting = {run.name: run for run in runs}
        # Name -> run, and what of it was done when it began.
        self._current: dict[str, tuple[Run, float]] = {}
        self._work, self._done, self._start = 0.0, 0, time.monotonic()
        self._terminal, self._shown = sys.stdout.isatty(), time.monotonic()

    def say(self, text: str) -> None:
        print(f"{CLEAR if self._terminal else ''}{text}", flush=True)

    def leave_out(self, run: Run) -> None:
        """``run`` is not this process's."""
        self._waiting.pop(run.name)

    @contextmanager
    def of(self, run: Run) -> Iterator[None]:
        """While ``run`` is carried out."""
        begun = fraction(self._waiting[run.name])
        self._current[run.name] = (self._waiting.pop(run.name), begun)
        try:
            yield
        finally:
            self._current.pop(run.name)
            self._work, self._done = self._work + 1 - begun, self._done + 1

    def line(self) -> str:
        """How many runs are done, what the current ones do, and the time left of all."""
        current, waiting = list(self._current.values()), list(self._waiting.values())
        total = self._done + len(current) + len(waiting)
        now = [fraction(run) for run, _ in current]
        work = self._work + sum(done - begun for done, (_, begun) in zip(now, current))
        left = sum(1 - done for done in now) + sum(1 - fraction(run) for run in waiting)
        parts = [f"{self._done} of {total} done", *(f"{run.name}: {going(run)}" for run, _ in current)]
        if work > 0:
            parts.append(f"all: about {duration((time.monotonic() - self._start) / work * left)} left")
        return "; ".join(parts)

    def show(self) -> None:
        """Prints :meth:`line` if the last one is long enough ago."""
        if time.monotonic() - self._shown >= (ON_TERMINAL if self._terminal else IN_FILE):
            self._shown = time.monotonic()
            print(f"{CLEAR if self._terminal else ''}{self.line()}", end="\r" if self._terminal else "\n", flush=True)
