"""Digest: shows whether two runs had the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ENDS = 1 << 16  # bytes


def data_digest(lists: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The number of cases of each list and a digest of their files, without any file name.

    Of every file its size and its first and last 64 KiB are read, which takes a moment whatever the data set. The end
    of a ``.nii.gz`` holds the checksum of all its content, so that every change shows; in the middle of a large
    ``.nii`` it does not. The order of the cases counts, their names and folders do not.

    Args:
        lists: name -> cases, whose "image" and "label" are a path or a list of paths.

    Returns:
        name -> {"cases": number, "digest": 16 hexadecimal digits}.
    """
    found = {}
    for name, cases in lists.items():
        whole = hashlib.sha256()
        for case in cases:
            for key in ("image", "label"):
                files = case.get(key, ())
                for file in files if isinstance(files, (list, tuple)) else [files]:
                    whole.update(key.encode() + file_digest(file))
        found[name] = {"cases": len(cases), "digest": whole.hexdigest()[:16]}
    return found


def file_digest(path: Any) -> bytes:
    """SHA-256 of a file's size and its first and last 64 KiB; of no bytes if the file cannot be read."""
    digest = hashlib.sha256()
    if isinstance(path, (str, Path)) and Path(path).is_file():
        size = Path(path).stat().st_size
        digest.update(str(size).encode())
        with Path(path).open("rb") as file:
            digest.update(file.read(ENDS))
            file.seek(max(0, size - ENDS))
            digest.update(file.read(ENDS))
    return digest.digest()
