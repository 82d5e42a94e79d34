"""Dropped probability: worked out from skip maps, and by quite another way from log-sum-exps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, Params, launch
from skimattn.sparse import dropped_from_lse, dropped_mass


def planted(rows: int, keys: int, heads_q: int = 4, heads_kv: int = 2, batch: int = 2) -> list[torch.Tensor]:
    """Scores that differ between tiles, so that some are skipped and their mass is felt."""
    generator = torch.Generator().manual_seed(rows * 31 + keys)
    q, k, v = (
        torch.randn(batch, length, heads, 64, generator=generator)
        for length, heads in ((rows, heads_q), (keys, heads_kv), (keys, heads_kv))
    )
    loud = torch.randn(batch, -(-keys // 64), heads_kv, 1, generator=generator).exp()
    return [q.bfloat16(), (k * loud.repeat_interleave(64, 1)[:, :keys]).bfloat16(), v.bfloat16()]


def launched(rows: int, keys: int, threshold: Any = 0.05, **options: Any) -> tuple[Params, torch.Tensor]:
    """A call with its skip map, and the log-sum-exp of the keys that it kept."""
    q, k, v = planted(rows, keys)
    batch, heads = q.shape[0], q.shape[2]
    made: dict[str, Any] = {"stats": torch.zeros(batch, heads, 2, dtype=torch.int64)}
    made["skip_map"] = torch.zeros(batch, heads, 8, 16, dtype=torch.uint8)
    params = Params(q, k, v, skip_softmax_threshold=threshold, return_lse=True, **made, **options)
    _, lse = launch(params)
    assert 0 < int(made["stats"][..., 1].sum()) < int(made["stats"][..., 0].sum()), "some tiles are skipped, not all"
    return params, lse


CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "full": (130, 600, {}),
    "causal": (300, 300, {"mask": "causal"}),
    "window": (200, 700, {"mask": "window", "window_size": (300, 0)}),
    "decode": (1, 900, {"mask": "causal"}),
    "decode of several rows": (40, 1500, {"mask": "causal"}),
    "sinks": (130, 600, {"sinks": torch.tensor([0.0, 3.0, 6.0, -2.0])}),
    "decode with sinks": (2, 900, {"sinks": torch.tensor([0.0, 3.0, 6.0, -2.0])}),
    "softcap": (130, 600, {"softcap": 20.0}),
    "alibi": (130, 600, {"alibi_slopes": torch.tensor([0.01, 0.02, 0.03, 0.0])}),
    "by head": (130, 600, {"threshold": torch.tensor([[0.0, 0.01, 0.1, 0.5]] * 2)}),
    "rows in use": (200, 600, {"seqused_q": torch.tensor([70, 200], dtype=torch.int32), "max_seqlen_q": 200}),
}


@pytest.mark.parametrize("name", CASES)
def test_both_ways_agree(name: str) -> None:
    rows, keys, options = CASES[name]
    params, kept = launched(rows, keys, **options)
    _, dense = launch(replace(params, skip_softmax_threshold=None, stats=None, skip_map=None, lse=None, out=None))
    lost = dropped_from_lse(kept, dense, options.get("sinks"))
    used = options.get("seqused_q", torch.tensor([rows, rows]))
    wanted = torch.stack([lost[index, : int(used[index])].double().mean(0) for index in range(2)])
    found = dropped_mass(params)
    assert found.shape == (2, 4) and found.dtype == torch.float64 and float(found.max()) > 1e-4
    assert torch.allclose(found, wanted, atol=3e-6, rtol=1e-3), (found, wanted)


def test_ragged_requests_are_each_of_their_own_phase() -> None:
    q, k, v = planted(300, 900, batch=1)
    lengths, held = [1, 120, 0, 64], [500, 200, 100, 64]
    ends_q, ends_k = (torch.tensor([0, *one]).cumsum(0).to(torch.int32) for one in (lengths, held))
    stats, skip_map = torch.zeros(4, 4, 2, dtype=torch.int64), torch.zeros(4, 4, 8, 16, dtype=torch.uint8)
    sizes: dict[str, Any] = {"cu_seqlens_q": ends_q, "cu_seqlens_k": ends_k, "max_seqlen_q": 120, "max_seqlen_k": 500}
    ragged = [q[0, :185], k[0, :864], v[0, :864]]
    params = Params(*ragged, skip_softmax_threshold=0.05, stats=stats, skip_map=skip_map, mask="causal", **sizes)
    launch(params)
    found = dropped_mass(params)
    for index in range(4):
        rows, keys = (slice(int(ends[index]), int(ends[index + 1])) for ends in (ends_q, ends_k))
        if rows.start == rows.stop:
            assert not found[index].any()
            continue
        alone = [tensor[None, part] for tensor, part in zip(ragged, (rows, keys, keys), strict=True)]
        marks = torch.zeros(1, 4, 8, 16, dtype=torch.uint8)
        own: dict[str, Any] = {"stats": torch.zeros(2, dtype=torch.int64), "skip_map": marks}
        call = Params(*alone, skip_softmax_threshold=0.05, mask="causal", **own)
        launch(call)
        assert torch.equal(dropped_mass(call)[0], found[index])


def test_by_hand() -> None:
    """Two tiles of 128 keys with scores 0 and ln 3: a quarter of the probability lies in the first."""
    q, k = torch.zeros(1, 1, 1, 64), torch.zeros(1, 256, 1, 64)
    q[..., 0], k[:, 128:, :, 0] = 1, math.log(3)
    call = Params(q.half(), k.half(), k.half(), softmax_scale=1.0, skip_softmax_threshold=0.0)
    marks = torch.tensor([[[[2, 1]]]], dtype=torch.uint8)
    assert dropped_mass(call, marks).item() == pytest.approx(0.25, abs=1e-3)
    none, all_of_it = (dropped_mass(call, torch.full_like(marks, mark)).item() for mark in (1, 2))
    assert none == 0 and all_of_it == pytest.approx(1)


def test_rows_without_keys_lose_nothing() -> None:
    empty = torch.full((1, 2, 1), -math.inf)
    assert not dropped_from_lse(empty, empty).any()
    assert not dropped_from_lse(empty, empty, torch.tensor([1.0])).any()
    assert dropped_from_lse(torch.tensor([-math.inf]), torch.tensor([2.0])).tolist() == [1.0]


def test_refusals() -> None:
    params, lse = launched(130, 600)
    with pytest.raises(ArgumentError, match=r"^skip_map: expected the decisions of the call \(got None\)"):
        dropped_mass(replace(params, skip_map=None))
    with pytest.raises(ArgumentError, match=r"^skip_map: expected \[2, 4, groups, tiles\] \(got \[1, 4, 8, 16\]\)"):
        dropped_mass(params, torch.zeros(1, 4, 8, 16, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match=r"^dense: expected the LSE of the same call, \[2, 130, 4\]"):
        dropped_from_lse(lse, lse[0])
