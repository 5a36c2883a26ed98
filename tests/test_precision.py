"""Tests of scripts/precision.py: mixed precision on a CPU, too, where MONAI silently leaves it out."""

import pytest
import torch
from monai.inferers import SimpleInferer

from scripts.errors import UserError
from scripts.precision import Evaluator, amp_options


@pytest.mark.parametrize("amp, able", [(True, {}), ("bfloat16", {"avx512_bw": True}), ("float16", {"amx_bf16": True})])
def test_mixed_precision_is_refused_on_a_processor_without_instructions_for_it(monkeypatch, amp, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    with pytest.raises(UserError, match="needs a GPU"):
        amp_options(amp, "cpu")


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16"])
def test_mixed_precision_on_a_cpu_is_bfloat16(monkeypatch, name):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    assert amp_options(True, "cpu") == amp_options("bfloat16", "cpu") == {"dtype": torch.bfloat16}


@pytest.mark.parametrize("amp, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_an_evaluation_on_a_cpu_computes_in_it(amp, dtype):
    evaluator = Evaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.ones(1, 1, 4, 4, 4)}],
        network=torch.nn.Conv3d(1, 2, 1),
        inferer=SimpleInferer(),
        amp=amp,
        amp_kwargs={"dtype": torch.bfloat16},
        decollate=False,
    )
    evaluator.run()
    assert evaluator.state.output["pred"].dtype == dtype


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
