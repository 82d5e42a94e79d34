"""flash-attn's functions on CPU tensors give what flash-attn's mean, for every mask, layout and length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skimattn.flash_attn_interface import _shared, flash_attn_func

from tests.helpers.flash_attn import FACES, Call, Seen, check, inputs_of, run
from tests.helpers.flash_attn_cases import FA3_CHUNKS_IN_WINDOWS, SMALL, batched_calls, name, varlen_calls


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


@pytest.mark.parametrize(("arguments", "seen"), FA3_CHUNKS_IN_WINDOWS, ids=lambda value: str(value).replace(" ", ""))
def test_chunks_in_windows_are_told_as_params_has_them(
    arguments: dict[str, Any], seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def recording(q: torch.Tensor, *_: torch.Tensor, **others: Any) -> torch.Tensor:
        told.update(others)
        return q

    monkeypatch.setattr(_shared, "attention", recording)
    flash_attn_func(*[torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16)] * 3, **arguments)
    assert told["mask"] == "chunked"
    # Without a window chunks are causal; with one, a row sees what chunk and window both show it.
    left, right = told.get("window_size", (-1, 0))
    means = Seen(left if left >= 0 else None, right if right >= 0 else None, told["chunk_size"])
    for lens in SMALL:
        assert torch.equal(means.of(*lens), seen.of(*lens))
