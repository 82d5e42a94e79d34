"""How ``bench decode`` calls the peers: operators with the signatures of their libraries, computed by definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench import decode_calls, decode_checks
from bench.decode_calls import Rotation
from bench.decode_inputs import Cache, cache_of
from bench.decode_work import Work
from tests.helpers.fa3_schema import FWD

# As the libraries of vLLM 0.24 spell them.
_METADATA = """get_scheduler_metadata(int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads,
int num_heads_k, int headdim, int headdim_v, ScalarType qkv_dtype, Tensor seqused_k, Tensor? cu_seqlens_q,
Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? leftpad_k, int? page_size,
int max_seqlen_k_new, bool is_causal, int window_size_left, int window_size_right, bool has_softcap, int num_splits,
bool? pack_gqa, int sm_margin) -> Tensor"""
_LATENT = """dense_decode_fwd(Tensor q, Tensor kcache, int head_size_v, Tensor seqlens_k, Tensor block_table,
float softmax_scale, bool is_causal, Tensor? tile_scheduler_metadata, Tensor? num_splits, Tensor? out)
-> (Tensor, Tensor, Tensor?, Tensor?)"""
WORK = Work("", (130, 40, 64), (1, 3, 1), heads_q=4, heads_kv=2, head_dim=64)


def attend(q: Any, k: Any, v: Any, table: Any, length: int, scale: float, left: int) -> torch.Tensor:
    """Causal rows of one request, bottom right, from the pages of a NHD cache."""
    keys, values = (pool[table.long()].flatten(0, 1)[:length].float().transpose(0, 1) for pool in (k, v))
    group = q.shape[1] // keys.shape[0]
    scores = q.float().transpose(0, 1) @ keys.repeat_interleave(group, 0).transpose(1, 2) * scale
    behind = torch.arange(length - len(q), length)[:, None] - torch.arange(length)
    hidden = (behind < 0) | (behind > left) if left >= 0 else behind < 0
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ values.repeat_interleave(group, 0)).transpose(0, 1)


@pytest.fixture
def operators() -> Iterator[Any]:
    library = torch.library.Library("skimattn_test_peers", "DEF")
    told: dict[str, Any] = {"metadata": [], "splits": [], "plans": []}

    def fwd(q: Any, k: Any, v: Any, *rest: Any) -> list[torch.Tensor]:
        (out, offsets), (lens, _, _, table) = rest[3:5], rest[8:12]
        scale, causal, left, right = rest[20:24]
        told["splits"].append((rest[26] is not None, rest[27]))
        assert causal and (left < 0 or right == 0)
        for request, length in enumerate(lens.tolist()):
            rows = slice(int(offsets[request]), int(offsets[request + 1]))
            pages = table[request, : -(-length // k.shape[1])]
            out[rows] = attend(q[rows], k, v, pages, length, scale, left).to(out.dtype)
        return [out, torch.empty(0)]

    def metadata(*arguments: Any) -> torch.Tensor:
        told["metadata"].append(arguments)
        return torch.zeros(1, dtype=torch.int32)

    def latent(q: Any, k: Any, dim: int, lens: Any, table: Any, scale: float, causal: bool, *rest: Any) -> Any:
        *plan, out = rest
        told["plans"].append(plan[0] is not None)
        for request, length in enumerate(lens.tolist()):
            pages = table[request, : -(-length // k.shape[1])]
            # As the library demands: [batch, heads_kv, rows x heads, columns].
            out[request, 0] = attend(q[request], k, k[..., :dim], pages, length, scale, -1).flatten(0, 1).to(out.dtype)
        return out, torch.empty(0), torch.zeros(1), torch.zeros(1)

    for schema, function in ((FWD, fwd), (_METADATA, metadata), (_LATENT, latent)):
        name = library.define(schema.replace("\n", " "))
        library.impl(name, function, "CompositeExplicitAutograd")
    namespace: Any = torch.ops.skimattn_test_peers
    namespace.told = told
    yield namespace
    library._destroy()


def check(items: list[Rotation], work: Work, cache: Cache) -> None:
    for item in items:
        assert len(item.calls) == len(cache.tables)
        item.calls[-1]()
        found = [*decode_checks.check_outputs({item.name: item.out}, work, cache)]
        assert found and all(each.passed for each in found), found


@pytest.mark.parametrize(
    "changes", [{}, {"window": 50}, {"layout": "joined"}, {"cache": "e4m3"}, {"rows": (1, 1, 1), "page": 16}], ids=str
)
def test_flash_attention_3(operators: Any, changes: dict[str, Any]) -> None:
    work = replace(WORK, **changes)
    several = cache_of(work, 2, "cpu")
    items = decode_calls._fa3(operators, work, several)
    assert [item.name for item in items] == ["fa3"] and operators.told["metadata"] == []
    check(items, work, several)
    operators.told["splits"].clear()
    cache = cache_of(work, 1, "cpu")
    items = decode_calls._fa3(operators, work, cache)
    assert [item.name for item in items] == ["fa3", "fa3 graph"]
    check(items, work, cache)
    assert operators.told["splits"] == [(False, 0), (True, 32)]
    (arguments,) = operators.told["metadata"]
    assert arguments[:7] == (3, max(work.rows), 130, 4, 2, 64, 64) and arguments[14] == work.page
    assert arguments[16:21] == (True, work.window - 1, 0 if work.window else -1, False, 32)


def test_flashmla(operators: Any) -> None:
    """Its plan is made once."""
    work = replace(WORK, rows=(2, 2, 2), heads_kv=1, head_dim=576, layout="latent")
    cache = cache_of(work, 2, "cpu")
    items = decode_calls._flashmla(operators, work, cache)
    check(items, work, cache)
    items[0].calls[0]()
    assert operators.told["plans"] == [False, True, True]


def test_xqa() -> None:
    work = replace(WORK, rows=(1, 1, 1), heads_q=16, heads_kv=1, head_dim=128)
    cache = cache_of(work, 2, "cpu")

    def decode(q: Any, pools: Any, workspace: Any, table: Any, lens: Any, longest: int, **rest: Any) -> Any:
        assert not workspace.any() and longest == 130 and rest["kv_layout"] == "NHD"
        for request, length in enumerate(lens.tolist()):
            pages = table[request, : -(-length // 64)]
            rest["out"][request] = attend(q[request][None], *pools, pages, length, rest["bmm1_scale"], -1)[0]
        return rest["out"]

    check(decode_calls._xqa(decode, work, cache), work, cache)
    for changes in ({"rows": (1, 3, 1)}, {"window": 5}, {"heads_q": 2}, {"page": 16}, {"cache": "e4m3", "heads_q": 4}):
        with pytest.raises(decode_calls.MissingError, match="no library"):
            decode_calls._xqa(decode, replace(work, **changes), cache)
