"""Writing: a NIfTI file is there completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.data import NibabelWriter


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer for ``SaveImaged(writer=...)``, which writes under another name and then renames.

    A run that is killed, or a disk that fills up, therefore never leaves half a file under the name of a mask. The
    other name is ``.writing-<process>.nii.gz`` in the same folder; a killed process may leave it behind.
    """

    def write(self, filename: str | os.PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write to ``filename``, which ends in .nii or .nii.gz; an older file of that name is replaced."""
        path = Path(filename)
        # nibabel compresses by the ending. Short, since the name of a case may be as long as a file name can be.
        ending = ".nii.gz" if path.name.endswith(".gz") else ".nii"
        temporary = path.with_name(f".writing-{os.getpid()}{ending}")
        try:
            super().write(temporary, verbose=verbose, **kwargs)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
