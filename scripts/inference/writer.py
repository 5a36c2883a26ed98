"""Writer: saves a map where its image lies for every program, in all three axes, completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.config import NdarrayOrTensor
from monai.data import NibabelWriter

from scripts.files import replacing

# What a NIfTI header says about where its voxels lie, and in which unit.
PLACE = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


class NiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer for ``SaveImaged(writer=...)``, with three differences.

    - It takes qform, sform, their codes and the units from the header that :class:`~scripts.data.NiftiReader` read.
      Programs that go by the qform or scale by the unit, as those on ITK do, then show the map on its image. An array
      without such a header gets sform and qform from its affine.
    - It drops only the axis of a single channel; MONAI's also drops the third axis of a volume of one slice.
    - A killed run or a full disk never leaves half a file under the name of a mask (:func:`~scripts.files.replacing`).
    """

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        super().set_metadata(meta_dict, resample=resample, **options)
        self.place = _place(meta_dict or {}, np.asarray(self.affine))

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
            if not self.place:
                super().write(temporary, verbose=verbose, **kwargs)
                return
            image = self.create_backend_obj(self.data_obj, affine=self.affine, dtype=self.output_dtype, **kwargs)
            for name, value in self.place.items():
                image.header[name] = value
            # Without its affine nibabel writes the header as it is.
            nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), temporary)


def _place(meta: Mapping[str, Any], affine: np.ndarray) -> dict[str, np.ndarray]:
    """The fields :data:`PLACE` of the header in ``meta``; none unless they give ``affine``, that of what is written."""
    fields = {name: np.asarray(meta[name]) for name in PLACE if name in meta}
    if len(fields) < len(PLACE):
        return {}
    original = np.asarray(meta["original_affine"])
    voxel = np.linalg.norm(original[:3, :3], axis=0).min()
    if not np.allclose(affine, original, atol=1e-3 * voxel):
        return {}
    # Transforms may change pixdim; MONAI's reader keeps the file's.
    pixdim = np.asarray(meta.get("original_pixdim", fields["pixdim"]), dtype=np.float32).ravel()
    return {**fields, "pixdim": np.where(np.arange(8) < 4, pixdim, 1)}
