"""Files: writes files completely or not at all and never through a link; digests; addresses of databases."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from scripts.errors import UserError

# Beginning of the name of a file that is being written.
UNFINISHED = ".writing-"
SQLITE = "sqlite:///"


@contextmanager
def replacing(path: str | Path, *, ending: str = "") -> Iterator[Path]:
    """Yields a temporary file that replaces ``path`` at the end; after an error ``path`` is unchanged.

    Whenever the process stops, ``path`` is the old file or the new one, never a part of it. The name in between is
    ``.writing-<host>-<process>``, since that of a case may be as long as a file name can be; a killed process may leave
    it behind. A link at either name is replaced and not followed.

    Args:
        path: its folder is made if missing.
        ending: of the name in between, for writers that go by it, such as ".nii.gz".

    Raises:
        OSError: when it cannot be written, such as on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{socket.gethostname()}-{os.getpid()}{ending}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, completely or not at all, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(name: str, folder: str | Path) -> None:
    """Tries to write into ``folder``, or where it will be created, so that a run does not fail at its end.

    Raises:
        UserError: naming the setting ``name``, the folder and the reason.
    """
    path = Path(folder).absolute()
    try:
        with tempfile.TemporaryFile(dir=next(place for place in (path, *path.parents) if place.exists())):
            pass
    except OSError as error:
        raise UserError(f"{name} {folder} cannot be written ({error.strerror}): choose another folder.") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sqlite_uri(path: str | Path) -> str:
    """MLflow's address of the database file ``path``: absolute, with special characters encoded.

    As monai.utils.path_to_sqlite_uri, which MONAI 1.5 does not have.
    """
    return SQLITE + quote(Path(path).absolute().as_posix(), safe="/:")
