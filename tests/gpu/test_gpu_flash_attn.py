"""flash-attn's functions on a GPU, against the same oracle as on the CPU, on larger calls."""

from __future__ import annotations

import pytest
import torch
from skimattn import merge_states
from skimattn.flash_attn_interface import cute, flash_attn_func, flash_attn_with_kvcache

from tests.helpers import kvcache, kvcache_cases
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


@pytest.mark.parametrize("step", list(kvcache_cases.steps(grow=5)), ids=kvcache_cases.name)
def test_caches(step: kvcache.Step) -> None:
    call = kvcache.run_of(step, "cuda")
    kvcache.check(step, call, *kvcache.call(call))


PLACES = {
    "batched": {},
    "padded": {"leftpad": (0, 5, 31)},
    "indexed": {"indexed": True},
    "paged": {"page_size": 16},
    "all": {"page_size": 16, "indexed": True, "leftpad": (0, 5, 7), "ragged_new": True},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_graph_replays_appending_at_other_lengths(place: str) -> None:
    """What a capture holds reads lengths, tables, indices and offsets anew, and nothing from the device before."""
    step = kvcache.Step(
        seen=Seen(right=0), arguments=(("causal", True),), rows=(2, 2, 2), new=(2, 2, 2), rotary_dim=32, **PLACES[place]
    )
    captured = kvcache.run_of(step, "cuda")
    kvcache.call(captured)  # loads the kernel, which a capture cannot
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = kvcache.call(captured)
    lengths = [
        ((50, 7, 33), (2, 2, 2)),
        ((12, 62, 40), (2, 2, 2)),
        ((31, 30, 60), (1, 2, 3) if place == "all" else (2, 2, 2)),
    ]
    for seed, (cached, new) in enumerate(lengths):
        current = step.but(cached=cached, new=new)
        wanted = kvcache.run_of(current, "cuda", seed)
        for tensor, value in wanted.passed.items():
            if isinstance(value, torch.Tensor):
                captured.passed[tensor].copy_(value)
        wanted.passed |= captured.passed
        graph.replay()
        kvcache.check(current, wanted, out, lse)


def test_nothing_waits_for_the_device() -> None:
    step = kvcache.Step(indexed=True, leftpad=(0, 5, 31), ragged_q=True, ragged_new=True, rotary_dim=32)
    call = kvcache.run_of(step, "cuda")
    kvcache.call(call)  # loads the kernel
    torch.cuda.set_sync_debug_mode("error")
    try:
        kvcache.call(call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_keys_that_have_no_place_are_not_written() -> None:
    k_cache, v_cache = (torch.full((2, 64, 2, 64), 7.0, device="cuda").half() for _ in range(2))
    new = torch.randn(2, 3, 2, 64, device="cuda").half()
    q = torch.randn(2, 3, 4, 64, device="cuda").half()
    lengths = torch.tensor([62, 1 << 20], dtype=torch.int32, device="cuda")
    flash_attn_with_kvcache(q, k_cache, v_cache, new, new, cache_seqlens=lengths)
    for cache in (k_cache, v_cache):
        assert torch.equal(cache[0, 62:], new[0, :2])
        assert bool((cache[0, :62] == 7).all()) and bool((cache[1] == 7).all())
    table = torch.tensor([[1], [-1]], dtype=torch.int32, device="cuda")
    lengths.fill_(0)
    flash_attn_with_kvcache(
        q, k_cache[:, :16], v_cache[:, :16], new, new, cache_seqlens=lengths, page_table=table, causal=True
    )
    assert torch.equal(k_cache[1, :3], new[0]) and bool((k_cache[0, :62] == 7).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merging_states(dtype: torch.dtype) -> None:
    random = torch.Generator(device="cuda").manual_seed(0)
    outs = torch.randn(5, 300, 8, 128, generator=random, device="cuda").to(dtype)
    lses = torch.randn(5, 300, 8, generator=random, device="cuda") * 8
    lses[2, :100], outs[2, :100] = -torch.inf, torch.nan
    out, lse = merge_states(outs, lses)
    wanted, wanted_lse = merge_states(outs.cpu(), lses.cpu())
    assert torch.allclose(
        out.cpu().float(), wanted.float(), rtol=2.0**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
    )
    assert torch.allclose(lse.cpu(), wanted_lse, rtol=1e-6, atol=1e-5)
    rows = slice(93, 107)
    alone = merge_states(list(outs[:, rows].unbind(0)), list(lses[:, rows].unbind(0)))
    assert torch.equal(alone[0], out[rows]) and torch.equal(alone[1], lse[rows])
