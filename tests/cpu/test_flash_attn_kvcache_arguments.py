"""What ``flash_attn_with_kvcache`` does with its arguments: nothing is copied, or written where it must not be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from skimattn import attention
from skimattn.flash_attn_interface import _append, _cache, _shared, flash_attn_func, flash_attn_with_kvcache

from tests.helpers.flash_attn import Seen
from tests.helpers.kvcache import Step, call, check, check_caches, run_of

Call = dict[str, Any]
STEP = Step(seen=Seen(right=0), arguments=(("causal", True),), rows=(3, 3, 3), new=(2, 2, 2))


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What every call launches."""
    seen: list[Call] = []

    def recording(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **arguments: Any) -> Any:
        seen.append({"q": q, "k": k, "v": v, **arguments})
        return attention(q, k, v, **arguments)

    monkeypatch.setattr(_shared, "attention", recording)
    return seen


@pytest.mark.parametrize(
    ("changes", "page_rows"),
    [
        ({}, None),
        ({"leftpad": (0, 5, 31)}, None),
        ({"leftpad": (3, 5, 31), "layout": "heads first"}, None),
        ({"indexed": True}, 64),
        ({"indexed": True, "capacity": 2048}, 1024),
        ({"indexed": True, "capacity": 1040}, 208),
        ({"indexed": True, "capacity": 75}, 1),
        ({"indexed": True, "leftpad": (0, 5, 31)}, 1),
        ({"page_size": 16}, 16),
        ({"page_size": 24, "capacity": 72}, 8),
        ({"page_size": 16, "leftpad": (0, 5, 31)}, 1),
    ],
    ids=str,
)
def test_caches_are_read_where_they_lie(changes: Call, page_rows: int | None, launched: list[Call]) -> None:
    step = STEP.but(**changes)
    run = run_of(step)
    check(step, run, *call(run))
    (told,) = launched
    for name in ("k", "v"):
        cache = run.passed[f"{name}_cache"]
        assert told[name].untyped_storage().data_ptr() == cache.untyped_storage().data_ptr()
    assert ("page_table" in told) == (page_rows is not None)
    assert page_rows is None or told["k"].shape[1] == page_rows
    if not changes:
        assert told["k"] is run.passed["k_cache"]


def test_lengths_as_they_are_given_reach_the_launch(launched: list[Call]) -> None:
    """So that a CUDA graph reads them anew."""
    run = run_of(STEP.but(new=None, page_size=16))
    call(run)
    assert launched[0]["seqused_k"] is run.passed["cache_seqlens"]
    assert launched[0]["page_table"] is run.passed["page_table"]


@pytest.mark.parametrize("changes", [{}, {"leftpad": (2, 0, 7)}, {"page_size": 16, "indexed": True}], ids=str)
def test_one_length_for_all_as_an_int_and_none_for_full_caches(changes: Call) -> None:
    step = STEP.but(cached=(40, 40, 40), **changes)
    run = run_of(step)
    run.passed["cache_seqlens"] = 40
    check(step, run, *call(run))
    full = STEP.but(cached=(64, 64, 64), new=None, **changes)
    run = run_of(full)
    del run.passed["cache_seqlens"]
    check(full, run, *call(run))


@pytest.mark.parametrize("changes", [{}, {"ragged_q": True}, {"ragged_new": True, "new": (2, 0, 3)}], ids=str)
def test_gaps_in_what_may_be_copied(changes: Call) -> None:
    step = STEP.but(indexed=True, page_size=16, leftpad=(1, 2, 3), rotary_dim=32, **changes)
    run = run_of(step)
    for name, value in run.passed.items():
        if isinstance(value, torch.Tensor) and "cache" not in name[1:]:
            run.passed[name] = torch.stack([value] * 2, dim=-1)[..., 0]
    check(step, run, *call(run))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_splits": 1},
        {"num_splits": 7},
        {"pack_gqa": True},
        {"sm_margin": 8},
        {"scheduler_metadata": torch.zeros(4, dtype=torch.int32)},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_has_no_effect(arguments: Call) -> None:
    wanted, got = call(run_of(STEP)), call(run_of(STEP), **arguments)
    assert all(map(torch.equal, got, wanted))


def test_results_without_log_sum_exp() -> None:
    out = flash_attn_with_kvcache(**run_of(STEP).passed)
    assert isinstance(out, torch.Tensor) and torch.equal(out, call(run_of(STEP))[0])


def test_step_by_step_is_all_at_once() -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 20, heads, 64, generator=random).bfloat16() for heads in (4, 2, 2))
    k_cache, v_cache = (torch.full((2, 32, 2, 64), math.nan).bfloat16() for _ in range(2))
    every = []
    for start, end in ((0, 9), (9, 10), (10, 11), (11, 20)):
        new = slice(start, end)
        every.append(
            flash_attn_with_kvcache(
                q[:, new], k_cache, v_cache, k[:, new], v[:, new], None, None, None, start, causal=True
            )
        )
    assert torch.equal(torch.cat(every, dim=1), flash_attn_func(q, k, v, causal=True))
    assert torch.equal(k_cache[:, :20], k) and bool(v_cache[:, 20:].isnan().all())


def test_eight_bit_keys_are_appended() -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v, k_cache, v_cache = (
        torch.randn(2, rows, heads, 64, generator=random).to(torch.float8_e4m3fn)
        for rows, heads in ((3, 4), (3, 2), (3, 2), (32, 2), (32, 2))
    )
    no_angle = torch.ones(64, 16).to(q.dtype), torch.zeros(64, 16).to(q.dtype)
    descales = {f"{name}_descale": torch.rand(2, 2, generator=random) + 0.5 for name in "qkv"}
    together = [
        torch.cat([old[:, :20].view(torch.uint8), new.view(torch.uint8)], dim=1).view(q.dtype)
        for old, new in ((k_cache, k), (v_cache, v))
    ]
    out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, None, *no_angle, 20, causal=True, **descales)
    assert torch.equal(out, flash_attn_func(q, *together, causal=True, **descales))
    for cache, wanted in ((k_cache, together[0]), (v_cache, together[1])):
        assert torch.equal(cache[:, :23].view(torch.uint8), wanted.view(torch.uint8))


def test_skipping_and_counting() -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(2, rows, heads, 64, generator=random) - 0.5 for rows, heads in ((1, 4), (300, 2), (300, 2)))
    q[..., 0], k[..., 0], k[:, 0, :, 0] = 16.0, 0.0, 16.0  # key 0 outweighs every other
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    stats, wanted_stats = (torch.zeros(2, 4, 2, dtype=torch.int64) for _ in range(2))
    options: Call = {"skip_softmax_threshold": torch.tensor([0.5, 0.0])}
    wanted = attention(q, k, v, stats=wanted_stats, **options)
    out = flash_attn_with_kvcache(
        q, k.clone(), v.clone(), k[:, -1:], v[:, -1:], cache_seqlens=299, stats=stats, **options
    )
    assert torch.equal(out, wanted) and torch.equal(stats, wanted_stats)
    assert bool(stats[0, :, 1].all()) and not stats[1, :, 1].any()


@pytest.mark.parametrize(
    "changes", [{}, {"page_size": 16, "indexed": True}, {"leftpad": (4, 0, 9)}, {"indexed": True}], ids=str
)
@pytest.mark.parametrize("rotary_dim", [0, 32])
def test_traced(changes: Call, rotary_dim: int) -> None:
    torch._dynamo.reset()
    step = STEP.but(rotary_dim=rotary_dim, ragged_new=True, new=(0, 4, 2), **changes)
    run, eager = run_of(step), run_of(step)
    got = torch.compile(lambda: call(run), backend="aot_eager", fullgraph=True)()
    assert all(map(torch.equal, got, call(eager)))
    check(step, run, *got)


# What a GPU is told that is not true, and cannot be refused there


def appended(cache: _cache.Cache, lengths: torch.Tensor, offsets: torch.Tensor | None, *shape: int) -> torch.Tensor:
    """Append 1, 2, 3, ... to keys and values; returns what the cache holds at column 0 of head 0."""
    new = torch.arange(1.0, math.prod(shape[:-2]) + 1).view(*shape[:-2], 1, 1).expand(shape)
    _append.append(cache, new, new, _append.rows_of(new, offsets), lengths)
    assert torch.equal(cache.k, cache.v)
    return cache.k[..., 0, 0]


def zeros(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(*shape, 1, 8), torch.zeros(*shape, 1, 8)


def test_keys_beyond_the_cache_are_not_written() -> None:
    held = appended(_cache.Cache(*zeros(3, 4), None), ints(2, 3, 4), None, 3, 2, 1, 8)
    assert held.tolist() == [[0, 0, 1, 2], [0, 0, 0, 3], [0, 0, 0, 0]]
    held = appended(_cache.Cache(*zeros(2, 4), None), ints(-1, 1 << 30), None, 2, 2, 1, 8)
    assert held.tolist() == [[2, 0, 0, 0], [0, 0, 0, 0]]


def test_where_nothing_can_be_written_all_stays() -> None:
    whole = torch.randn(2, 4, 1, 8)
    held = appended(_cache.Cache(whole.clone(), whole.clone(), None), ints(4, 9), None, 2, 2, 1, 8)
    assert torch.equal(held, whole[..., 0, 0])
    assert appended(_cache.Cache(*zeros(2, 4), None), ints(1, 1), None, 2, 0, 1, 8).sum() == 0


def test_rows_of_no_request_are_not_written() -> None:
    held = appended(_cache.Cache(*zeros(3, 4), None), ints(1, 0, 0), ints(1, 3, 3, 4), 7, 1, 8)
    assert held.tolist() == [[0, 2, 3, 0], [0, 0, 0, 0], [4, 0, 0, 0]]


@pytest.mark.parametrize("wrong", [-1, 3, 1 << 30, -(1 << 31)])
def test_keys_in_pages_that_are_not_there_are_not_written(wrong: int) -> None:
    table = torch.tensor([[2, wrong], [wrong, 1]], dtype=torch.int32)
    held = appended(_cache.Cache(*zeros(3, 2), table), ints(1, 1), None, 2, 2, 1, 8)
    assert held.tolist() == [[0, 0], [4, 0], [0, 1]]


def test_requests_of_a_cache_that_are_not_there() -> None:
    cache = _cache.cache_of(*zeros(2, 3), None, ints(1, 7))
    assert appended(cache, ints(1, 1), None, 2, 1, 1, 8).tolist() == [[0, 0, 0], [0, 1, 0]]
    pages = _cache.cache_of(*zeros(2, 3), torch.tensor([[1]], dtype=torch.int32), ints(-5, 9))
    assert pages.table is not None and pages.table.tolist() == [[1], [1]]


def test_positions_that_no_angle_is_given_for_stop_nothing() -> None:
    rotary = _append.Rotary(torch.ones(2, 4), torch.zeros(2, 4), ints(-5, 9), True)
    x = torch.randn(2, 3, 1, 8)
    assert torch.equal(rotary.turn(x, rotary.positions(_append.rows_of(x, None), moving=True)), x)


def test_pages_that_no_row_sees_need_not_be_there() -> None:
    step = STEP.but(seen=Seen(4, 0), arguments=(("causal", True), ("window_size", (4, 0))), page_size=16)
    run = run_of(step)
    run.passed["page_table"][0, :2] = -1
    out, lse = call(run)
    check_caches(step, run)
    check(step, run, out, lse)


@pytest.mark.parametrize("shape", [None, (), (2, 2)], ids=str)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_keys_of_sixteen_bits_go_into_a_cache_of_eight(
    shape: tuple[int, ...] | None, ragged: bool, rotary: bool
) -> None:
    """They are what one gets who quantizes them first; numbers too large become the largest, NaN stays."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, heads, 64, generator=random).bfloat16() for heads in (4, 2, 2))
    k[0, 0, 0, 40], k[0, 1, 1, 41], v[1, 2, 1, 5] = 3e4, -3e4, math.nan
    old = [torch.randn(2, 32, 2, 64, generator=random).to(torch.float8_e4m3fn) for _ in "kv"]
    given = {} if shape is None else {f"{x}_descale": torch.rand(shape, generator=random) + 0.5 for x in "kv"}
    whole = {name: x.expand(2, 2) for name, x in given.items()}
    angle = torch.rand(64, 16, generator=random)
    tables = (angle.cos().bfloat16(), angle.sin().bfloat16()) if rotary else (None, None)
    # Rotated alone: appended to a cache of 16 bits.
    straight = [torch.zeros(2, 32, 2, 64).bfloat16() for _ in "kv"]
    flash_attn_with_kvcache(q, *straight, k, v, None, *tables, 20, causal=True)
    wanted = []
    for name, cache, new in zip("kv", old, straight, strict=True):
        cache = cache.clone()
        for request in range(2):
            for head in range(2):
                scale = float(whole[f"{name}_descale"][request, head]) if whole else 1.0
                numbers = new[request, 20:23, head].double() / scale
                numbers[numbers > 448], numbers[numbers < -448] = 448.0, -448.0
                cache[request, 20:23, head] = numbers.float().to(cache.dtype)
        wanted.append(cache)
    passed = {"k": k.flatten(0, 1), "v": v.flatten(0, 1)} if ragged else {"k": k, "v": v}
    if ragged:
        passed["cu_seqlens_k_new"] = torch.tensor([0, 3, 6], dtype=torch.int32)
    named = {"rotary_cos": tables[0], "rotary_sin": tables[1], "cache_seqlens": 20, "causal": True}
    out = flash_attn_with_kvcache(q, *old, **passed, **named, **given)
    for cache, meant in zip(old, wanted, strict=True):
        assert torch.equal(cache.view(torch.uint8), meant.view(torch.uint8))
    if not rotary:
        named = {"cache_seqlens": 23, "causal": True}
        assert torch.equal(out.nan_to_num(9.0), flash_attn_with_kvcache(q, *wanted, **named, **given).nan_to_num(9.0))
