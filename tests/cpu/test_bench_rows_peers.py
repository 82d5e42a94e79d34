"""How ``bench rows`` calls the peers: stand-ins with the signatures of their libraries, computed by definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import peers, prefill_calls, prefill_checks
from bench.contender import Contender
from bench.inputs import Inputs
from bench.peers import MissingError, load_named
from bench.prefill_inputs import data_of
from bench.prefill_work import Work
from bench.shape import Shape
from tests.helpers.fa3_schema import FWD

WORK = Work("", (130, 130), (130, 130), heads_q=4, heads_kv=2, head_dim=64, head_dim_v=64)
FORMS: list[dict[str, Any]] = [
    {},
    {"mask": "full", "lens": (60, 60)},
    {"window": 50},
    {"lens": (130, 40), "rows": (130, 40)},
    {"head_dim": 48, "dtype": "fp16"},
    {"head_dim": 192, "head_dim_v": 128, "heads_q": 2},
]
PAGED: list[dict[str, Any]] = [
    {"rows": (30, 30), "page": 16},
    {"rows": (30, 30), "page": 64, "dtype": "e4m3"},
    {"dtype": "e4m3"},
]


def attend(q: Any, k: Any, v: Any, causal: bool, left: int) -> torch.Tensor:
    """Rows of one request, bottom right: [rows, Hq, Dv] of [rows, Hq, D] and [keys, Hkv, D]."""
    at = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
    seen = (at >= 0) | (not causal)
    if left >= 0:
        seen &= at <= left
    q, k, v = (x.float().transpose(0, 1) for x in (q, k, v))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    return found.transpose(0, 1)


def out_like(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    dtype = torch.bfloat16 if q.dtype.itemsize == 1 else q.dtype
    return torch.empty(*q.shape[:-1], v.shape[-1], dtype=dtype)


@pytest.fixture
def operators() -> Iterator[Any]:
    library = torch.library.Library("skimattn_test_rows", "DEF")
    told: list[tuple[Any, ...]] = []

    def fwd(q: Any, k: Any, v: Any, *rest: Any) -> list[torch.Tensor]:
        (offsets, offsets_k), (lens, most, longest, table) = rest[4:6], rest[8:12]
        scale, causal, left, right = rest[20:24]
        told.append((rest[27], None if rest[17] is None else tuple(rest[17].shape), most, longest))
        assert abs(scale - q.shape[-1] ** -0.5) < 1e-9 and right == (0 if left >= 0 else -1)
        assert (offsets_k is None) != (table is None) and (lens is None) == (table is None)
        out = out_like(q, v)
        for request in range(len(offsets) - 1):
            rows = slice(int(offsets[request]), int(offsets[request + 1]))
            if table is None:
                keys = slice(int(offsets_k[request]), int(offsets_k[request + 1]))
                pair = k[keys], v[keys]
            else:
                length = int(lens[request])
                pages = table[request, : -(-length // k.shape[1])].long()
                pair = k[pages].flatten(0, 1)[:length], v[pages].flatten(0, 1)[:length]
            out[rows] = attend(q[rows], *pair, causal, left).to(out.dtype)
        return [out, torch.empty(0)]

    library.impl(library.define(FWD.replace("\n", " ")), fwd, "CompositeExplicitAutograd")
    namespace: Any = torch.ops.skimattn_test_rows
    namespace.told = told
    yield namespace
    library._destroy()


def check(items: list[Contender], work: Work, data: Any) -> None:
    wanted = prefill_checks.sampled(work, data)
    for item in items:
        found = [*prefill_checks.check_output(item.name, item.call().flatten(0, -3), wanted, work, None)]
        assert found and all(each.passed for each in found), found


@pytest.mark.parametrize("changes", [*FORMS, *PAGED], ids=str)
def test_flash_attention_3(operators: Any, changes: dict[str, Any]) -> None:
    work = replace(WORK, **changes)
    data = data_of(work, "cpu")
    items = prefill_calls._fa3(operators, work, data)
    assert [item.name for item in items] == ["fa3"]
    check(items, work, data)
    descale = (2, work.heads_kv) if work.dtype == "e4m3" else None
    assert operators.told == [(0 if work.page else 1, descale, max(work.rows), max(work.lens))]


def fa4() -> Any:
    """FlashAttention-4's functions take windows with None for what is unlimited."""

    def batched(q: Any, k: Any, v: Any, *, causal: bool, window_size: Any = (None, None)) -> Any:
        left = -1 if window_size[0] is None else window_size[0]
        parts = [attend(*part, causal, left) for part in zip(q, k, v, strict=True)]
        return torch.stack(parts).to(q.dtype), None

    def varlen(q: Any, k: Any, v: Any, *, causal: bool, window_size: Any = (None, None), **rest: Any) -> Any:
        assert rest["max_seqlen_q"] == rest["max_seqlen_k"] == 130 and rest["cu_seqlens_q"] is rest["cu_seqlens_k"]
        ends = rest["cu_seqlens_q"].tolist()
        parts = [attend(q[a:b], k[a:b], v[a:b], causal, -1) for a, b in pairwise(ends)]
        return torch.cat(parts).to(q.dtype), None

    return SimpleNamespace(flash_attn_func=batched, flash_attn_varlen_func=varlen)


@pytest.mark.parametrize("changes", FORMS, ids=str)
def test_flash_attention_4(changes: dict[str, Any]) -> None:
    work = replace(WORK, **changes)
    data = data_of(work, "cpu")
    check(prefill_calls._fa4(fa4(), work, data), work, data)


@pytest.mark.parametrize("changes", PAGED, ids=str)
def test_what_flash_attention_4_is_not_asked(changes: dict[str, Any]) -> None:
    work = replace(WORK, **changes)
    with pytest.raises(MissingError, match="16 bits and without pages"):
        prefill_calls._fa4(fa4(), work, data_of(work, "cpu"))


def test_peers_of_bench_prefill_get_what_they_take() -> None:
    thresholds: list[float | None] = []

    def make(inputs: Inputs, shape: Shape, threshold: float | None) -> list[Contender]:
        thresholds.append(threshold)
        parts = zip(inputs.q, inputs.k, inputs.v, strict=True)
        return [Contender("cudnn", lambda: torch.stack([attend(*part, shape.causal, -1) for part in parts]))]

    for changes in FORMS:
        work = replace(WORK, **changes)
        data = data_of(work, "cpu")
        if work.window or work.ragged:
            with pytest.raises(MissingError, match="one length"):
                prefill_calls._alike(make, work, data)
        else:
            check(prefill_calls._alike(make, work, data), work, data)
    planted = replace(WORK, lens=(512,), rows=(512,), planted=0.5, skipping=True)
    prefill_calls._alike(make, planted, data_of(planted, "cpu"))
    assert thresholds == [None] * 4 + [1e-3]
    with pytest.raises(MissingError, match="one length"):
        prefill_calls._alike(make, replace(WORK, rows=(9, 9)), data_of(replace(WORK, rows=(9, 9)), "cpu"))


def test_fmha_v2_writes_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    work = replace(WORK, lens=(512,), rows=(512,), dtype="e4m3", planted=0.5, skipping=True)
    data = data_of(work, "cpu")
    factors: list[float] = []

    def run(
        pair: Any, layout: str, workspace: Any, lens: Any, *rest: Any, out: Any, mask_mode: str, **named: Any
    ) -> None:
        assert layout == "CONTIGUOUS_Q_KV" and mask_mode == "causal" and rest[0] == rest[1] == 512
        factors.append(named["skip_softmax_threshold_scale_factor"])
        q, (k, v) = pair[0], pair[1].unbind(1)
        out.copy_(attend(q, k, v, True, -1))

    monkeypatch.setattr(peers, "module_of", lambda name: SimpleNamespace(trtllm_fmha_v2_prefill=run))
    made, missing = load_named(prefill_calls.LOADERS, ["fmha_v2"])
    items = made["fmha_v2"](work, data)
    assert [item.name for item in items] == ["fmha_v2", "fmha_v2 skip@0.001"] and missing == []
    check(items, work, data)
    assert factors == [0.0, 0.001 * 512], "it divides by the length"


def test_peers_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FA3_LIBRARY", raising=False)
    made, missing = load_named(prefill_calls.LOADERS, ["fa3", "fa4", "fmha_v2"])
    assert made == {} and [item.peer for item in missing] == ["fa3", "fa4", "fmha_v2"]
    assert "FA3_LIBRARY" in missing[0].reason and "flash_attn" in missing[1].reason
