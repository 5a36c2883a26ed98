"""Tests of scripts/precision.py: mixed precision is refused where MONAI would silently leave it out."""

import pytest
import torch

from scripts.errors import UserError
from scripts.precision import amp_options


@pytest.mark.parametrize("amp", [True, "bfloat16", "float16"])
def test_mixed_precision_on_a_cpu_is_refused(amp):
    with pytest.raises(UserError, match="needs a GPU"):
        amp_options(amp, "cpu")


def test_without_it_nothing_is_cast_and_other_words_are_refused():
    assert amp_options(False, "cpu") == amp_options(False, "cuda") == {}
    with pytest.raises(UserError, match="'fp8'"):
        amp_options("fp8", "cuda")


@pytest.mark.parametrize("supported, dtype", [(True, torch.bfloat16), (False, torch.float16)])
def test_type_is_the_named_one_or_what_the_card_computes_in(monkeypatch, supported, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert amp_options(True, "cuda:0") == {"dtype": dtype}
    assert amp_options("float16", torch.device("cuda")) == {"dtype": torch.float16}
    assert amp_options("bfloat16", "cuda") == {"dtype": torch.bfloat16}
