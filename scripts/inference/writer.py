"""Writer: saves a map in all three axes of its image, completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.config import NdarrayOrTensor
from monai.data import NibabelWriter

from scripts.files import replacing


class NiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer for ``SaveImaged(writer=...)``, with two differences.

    It drops only the last axis of a single channel, where MONAI's drops all trailing axes of extent 1 and so the third
    axis of a volume of one slice.

    It writes by :func:`~scripts.files.replacing`: a run that is killed, or a disk that fills up, never leaves half a
    file under the name of a mask.
    """

    def set_data_array(
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: Any
    ) -> None:
        super().set_data_array(data_array, channel_dim=channel_dim, squeeze_end_dims=False, **kwargs)
        if squeeze_end_dims and self.data_obj.ndim == 4 and self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]

    def write(self, filename: str | os.PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write to ``filename``, which ends in .nii or .nii.gz; an older file of that name is replaced."""
        path = Path(filename)
        # nibabel compresses by the ending.
        ending = ".nii.gz" if path.name.endswith(".gz") else ".nii"
        with replacing(path, ending=ending) as temporary:
            super().write(temporary, verbose=verbose, **kwargs)
