"""Lock: keeps two processes from writing to one folder at the same time.

The system holds the lock and lets go of it when its process ends, however it ends and on whichever machine of a shared
file system. What the file says is for people; where it is left behind, by a process that was killed, it locks nothing.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from scripts.data import DataError
from scripts.ranks import rank

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
# What this process holds: of one process several runs, as of a client's rounds, follow each other.
_held: dict[Path, TextIO] = {}


def hold(folder: str | Path, purpose: str, *, wait: bool = False) -> None:
    """Locks ``folder`` for this process until :func:`release` or its end; does nothing if the process holds it.

    Of several processes of one process group the first holds the lock.

    Args:
        folder: made if missing.
        purpose: what is done there, such as "training"; the file is ``.lock-<purpose>``, and other purposes may go on
            beside it.
        wait: until the other process lets go, for what takes a moment.

    Raises:
        DataError: naming the process and host that hold it.
    """
    path = _path(folder, purpose)
    if fcntl is None or rank() or path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = _opened(path, os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{folder} is in use by {_holder(file.read())}: wait until it ends, or choose another folder for "
                f"{purpose}."
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see to it that one process at a time writes there", folder, error)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # whoever held it has just removed it: another may hold the next
    if former := file.read():
        logger.info("the lock on %s was left behind by %s, which has ended", folder, _holder(former))
    file.seek(0)
    file.truncate()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": now, "command": sys.argv}, file)
    file.flush()
    _held[path] = file


def is_free(folder: str | Path, purpose: str) -> bool:
    """Whether no process holds ``folder``, as far as the file system can tell; False where it cannot.

    For a moment it takes the lock itself, so that two processes that ask at once may get in each other's way. The file
    of a process that was killed is removed.
    """
    path = _path(folder, purpose)
    try:
        with _opened(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return fcntl is not None
    except (OSError, AttributeError):  # held, or there are no locks
        return False
    return True


def release(folder: str | Path, purpose: str) -> None:
    """Gives up what :func:`hold` took, and removes its file."""
    _release(_path(folder, purpose))


@contextmanager
def held(*folders: str | Path, purpose: str, wait: bool = False) -> Iterator[None]:
    """Holds all ``folders`` while the block runs."""
    try:
        for folder in folders:
            hold(folder, purpose, wait=wait)
        yield
    finally:
        for folder in folders:
            release(folder, purpose)


def _path(folder: str | Path, purpose: str) -> Path:
    return (Path(folder) / f".lock-{purpose}").absolute()


def _opened(path: Path, flags: int = 0) -> TextIO:
    # Not followed: a link that somebody left there would be written through.
    return os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | flags, 0o644), "r+", encoding="utf-8")


def _release(path: Path) -> None:
    file = _held.pop(path, None)
    if file is not None:
        path.unlink(missing_ok=True)
        file.close()


@atexit.register
def _release_all() -> None:
    for path in list(_held):
        _release(path)


def _leave_to_parent() -> None:
    """Closes in a forked process, such as a data worker, what would hold the lock after its parent was killed."""
    for file in _held.values():
        file.close()
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_leave_to_parent)


def _holder(text: str) -> str:
    try:
        facts = json.loads(text)
        return f"process {facts['process']} on {facts['host']} since {facts['since']}"
    except (ValueError, KeyError, TypeError):  # it has just been made
        return "another process"
