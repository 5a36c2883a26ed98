"""Precision: mixed precision of the engines, from the setting ``amp`` and the device."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedEvaluator

from scripts.errors import UserError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_options(amp: bool | str, device: torch.device | str) -> dict[str, Any]:
    """The arguments of ``torch.autocast`` except the device type, for ``amp_kwargs`` of the engines.

    Args:
        amp: False; True for bfloat16 where the device computes in it and float16 where a GPU does not; or either name.
        device: of the run.

    Raises:
        UserError: when ``amp`` is neither, or a CPU has no instructions for it and would only be slower.
    """
    if amp is False:
        return {}
    if amp is not True and amp not in DTYPES:
        raise UserError(f"amp is {amp!r}; it is true, false, {' or '.join(DTYPES)}.")
    if torch.device(device).type != "cuda":
        able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases of torch lack it
        if amp == "float16" or not (able.get("amx_bf16") or able.get("avx512_bf16")):
            raise UserError(
                f"amp is {amp!r} and the device is {device}: mixed precision needs a GPU, or bfloat16 and a processor "
                "with AMX or AVX512-BF16; set amp to false."
            )
        return {"dtype": torch.bfloat16}
    return {"dtype": DTYPES.get(str(amp), torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)}


class Evaluator(SupervisedEvaluator):
    """MONAI's evaluator with mixed precision on any device; MONAI's own uses it on GPUs only.

    Args:
        device: of the run.
        amp: whether the inferer calls the network in mixed precision.
        amp_kwargs: arguments of ``torch.autocast``, see :func:`amp_options`.
        kwargs: as in ``monai.engines.SupervisedEvaluator``.
    """

    def __init__(self, *, device: torch.device, amp: bool = False, amp_kwargs: Any = None, **kwargs: Any) -> None:
        super().__init__(device=device, **kwargs)
        self.inferer = torch.autocast(torch.device(device).type, enabled=amp, **(amp_kwargs or {}))(self.inferer)
