"""Precision: arguments of mixed precision for MONAI's engines, from the setting ``amp`` and the device."""

from __future__ import annotations

from typing import Any

import torch

from scripts.errors import UserError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_options(amp: bool | str, device: torch.device | str) -> dict[str, Any]:
    """The arguments of ``torch.autocast`` except the device type, for ``amp_kwargs`` of MONAI's engines.

    Args:
        amp: False; True for bfloat16 where the card computes in it and float16 where not; or the name of either.
        device: of the run.

    Raises:
        UserError: when ``amp`` is neither, or is on where there is no GPU: MONAI's engines cast on GPUs only.
    """
    if amp is False:
        return {}
    if amp is not True and amp not in DTYPES:
        raise UserError(f"amp is {amp!r}; it is true, false, {' or '.join(DTYPES)}.")
    if torch.device(device).type != "cuda":
        raise UserError(f"amp is {amp!r} and the device is {device}: mixed precision needs a GPU; set amp to false.")
    return {"dtype": DTYPES.get(str(amp), torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)}
