"""flash-attn's functions on CPU tensors give what flash-attn's mean, for every mask, layout and length."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.flash_attn import FACES, Call, Seen, check, inputs_of, run
from tests.helpers.flash_attn_cases import SMALL, batched_calls, name, varlen_calls


@pytest.mark.parametrize("call", [call for face in FACES for call in batched_calls(face, SMALL)], ids=name)
def test_requests_of_one_length(call: Call) -> None:
    inputs = inputs_of(call)
    check(call, inputs, *run(call, inputs))


@pytest.mark.parametrize("call", [call for face in FACES for call in varlen_calls(face, 70)], ids=name)
def test_requests_of_different_lengths(call: Call) -> None:
    inputs = inputs_of(call)
    check(call, inputs, *run(call, inputs))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", ["batched", "ragged"])
def test_fp8(causal: bool, layout: str) -> None:
    call = Call(
        seen=Seen(right=0 if causal else None),
        arguments=(("causal", causal),),
        dtype=torch.float8_e4m3fn,
        descales=True,
        q_layout=layout,
        kv_layout=layout,
    )
    inputs = inputs_of(call)
    check(call, inputs, *run(call, inputs))
    assert inputs.passed["k_descale"].shape == (2, 2)
