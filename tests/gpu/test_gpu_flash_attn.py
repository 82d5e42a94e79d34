"""flash-attn's functions on a GPU, against the same oracle as on the CPU, on larger calls."""

from __future__ import annotations

import pytest
import torch
from skimattn.flash_attn_interface import cute, flash_attn_func

from tests.helpers.flash_attn import FACES, Call, Seen, check, inputs_of, run
from tests.helpers.flash_attn_cases import LARGE, batched_calls, name, varlen_calls
from tests.helpers.gpu import gpu_arch


@pytest.mark.parametrize("call", [call for face in FACES for call in batched_calls(face, LARGE)], ids=name)
def test_requests_of_one_length(call: Call) -> None:
    inputs = inputs_of(call, "cuda")
    check(call, inputs, *run(call, inputs))


@pytest.mark.parametrize("call", [call for face in FACES for call in varlen_calls(face, 700)], ids=name)
def test_requests_of_different_lengths(call: Call) -> None:
    inputs = inputs_of(call, "cuda")
    check(call, inputs, *run(call, inputs))


@pytest.mark.skipif(gpu_arch() == "sm90", reason="kernels for e4m3 exist for SM100 only")
@pytest.mark.parametrize("causal", [False, True])
def test_fp8(causal: bool) -> None:
    call = Call(
        seen=Seen(right=0 if causal else None),
        arguments=(("causal", causal),),
        lens=((300, 700), (300, 700)),
        dims=(128, 128),
        dtype=torch.float8_e4m3fn,
        descales=True,
    )
    inputs = inputs_of(call, "cuda")
    check(call, inputs, *run(call, inputs))


@pytest.mark.parametrize("which", range(3))
def test_unaligned_and_oddly_strided_tensors_are_copied(which: int) -> None:
    given = [torch.randn(2, 200, 4, 128, device="cuda").bfloat16() for _ in range(3)]
    wanted = flash_attn_func(*given, causal=True)
    x = given[which]
    unaligned = torch.empty(x.numel() + 1, dtype=x.dtype, device="cuda")[1:].view_as(x).copy_(x)
    odd = torch.empty(2, 200, 4, 129, dtype=x.dtype, device="cuda")[..., :128].copy_(x)
    for other in (unaligned, odd, x.transpose(1, 3).contiguous().transpose(1, 3)):
        given[which] = other
        assert torch.equal(flash_attn_func(*given, causal=True), wanted)
        assert torch.equal(cute.flash_attn_func(*given, causal=True)[0], wanted)


def test_a_graph_replays_the_call_with_other_numbers() -> None:
    call = Call(arguments=(("causal", True),), seen=Seen(right=0), sink=torch.bfloat16, face="fa4")
    inputs, others = inputs_of(call, "cuda"), inputs_of(call, "cuda", seed=1)
    run(call, inputs)  # loads the kernel, which a capture cannot
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = run(call, inputs)
    for current in (inputs, others):
        for tensor in ("q", "k", "v", "learnable_sink"):
            inputs.passed[tensor].copy_(current.passed[tensor])
        graph.replay()
        check(call, current, out, lse)
