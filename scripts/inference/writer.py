"""Writer: saves a map with the three axes of its image, also where the last one has a single slice."""

from __future__ import annotations

from typing import Any

from monai.config import NdarrayOrTensor
from monai.data import NibabelWriter


class NiftiWriter(NibabelWriter):
    """MONAI's writer, which drops all trailing axes of extent 1, dropping only that of a single channel."""

    def set_data_array(
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: Any
    ) -> None:
        super().set_data_array(data_array, channel_dim=channel_dim, squeeze_end_dims=False, **kwargs)
        if squeeze_end_dims and self.data_obj.ndim == 4 and self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]
