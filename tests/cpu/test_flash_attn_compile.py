"""Code that calls flash-attn's functions is traced in one graph, and gives the same bits."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.flash_attn import FACES, Call, Seen, check, inputs_of, run

CALLS = {
    "batched": Call(arguments=(("causal", True), ("window_size", [20, 5])), seen=Seen(20, 0)),
    "ragged": Call(lens=((3, 70), (40, 20)), q_layout="ragged", kv_layout="ragged", seqused=(False, True)),
}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("layout", CALLS)
def test_traced(layout: str, face: str) -> None:
    call = CALLS[layout].but(face=face, sink=torch.bfloat16 if face == "fa4" else None)
    inputs = inputs_of(call)
    wanted = run(call, inputs)
    got = torch.compile(lambda: run(call, inputs), backend="aot_eager", fullgraph=True)()
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)
    check(call, inputs, *got)
