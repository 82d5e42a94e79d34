"""Calls of ``flash_attn_with_kvcache`` as values, and what they mean, request by request and key by key in float64.

Written from flash-attn's documentation. The caches are kept here as one list of keys per request; what lies in the
tensors before, behind and between them is NaN, which would show, and must be there still after a call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from skimattn.flash_attn_interface import flash_attn_with_kvcache

from .flash_attn import Call, Inputs, Seen, attend

UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
EVERY = Seen()
SPARE_REQUESTS, SPARE_PAGES = 2, 3


@dataclass(frozen=True)
class Step:
    """One call. ``arguments`` are passed as they stand and mean ``seen``; ``new`` keys are appended (None: no k, v)."""

    seen: Seen = EVERY
    arguments: tuple[tuple[str, Any], ...] = ()
    rows: tuple[int, ...] = (1, 1, 1)
    cached: tuple[int, ...] = (50, 7, 33)
    new: tuple[int, ...] | None = (1, 1, 1)
    leftpad: tuple[int, ...] | None = None
    capacity: int = 64  # keys of a request; with pages a multiple of theirs
    page_size: int = 0  # 0: no pages
    indexed: bool = False  # cache_batch_idx
    ragged_q: bool = False
    ragged_new: bool = False
    rotary_dim: int = 0
    interleaved: bool = True
    rotary_seqlens: tuple[int, ...] | None = None
    layout: str = "contiguous"  # of the caches: or "heads first", "longer", "together"
    heads: tuple[int, int] = (4, 2)
    dims: tuple[int, int] = (64, 64)
    dtype: torch.dtype = torch.bfloat16

    def but(self, **changes: Any) -> Step:
        """The same call with other fields."""
        return replace(self, **changes)


@dataclass
class Run:
    """The tensors of a call, and in float64 what it has to make of them."""

    passed: dict[str, Any]
    k_cache: torch.Tensor  # after the call, bit by bit but for what was rotated
    v_cache: torch.Tensor
    rotated: torch.Tensor  # float64, as k_cache: the new keys after rotation, and 0 elsewhere
    meant: Inputs


def run_of(step: Step, device: str = "cpu", seed: int = 0) -> Run:
    """Random numbers for a call."""
    random = torch.Generator().manual_seed(seed)
    batch, (heads_q, heads_kv), (dim, dim_v) = len(step.rows), step.heads, step.dims
    new = step.new or (0,) * batch

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(step.dtype)

    q = [numbers(rows, heads_q, dim) for rows in step.rows]
    old_k, old_v = ([numbers(n, heads_kv, columns) for n in step.cached] for columns in (dim, dim_v))
    new_k, new_v = ([numbers(n, heads_kv, columns) for n in new] for columns in (dim, dim_v))
    passed: dict[str, Any] = dict(step.arguments)
    where = _places(step, passed, random)  # [B, capacity, 2]: (outer, inner) of every key
    first = step.leftpad or (0,) * batch
    caches, after = [], []
    for columns, old, fresh in ((dim, old_k, new_k), (dim_v, old_v, new_v)):
        cache = _empty_cache(step, columns)
        for index in range(batch):
            kept = slice(first[index], step.cached[index])
            cache[where[index, kept, 0], where[index, kept, 1]] = old[index][kept]
        caches.append(cache)
        after.append(cache.clone())
        for index in range(batch):
            there = slice(step.cached[index], step.cached[index] + new[index])
            after[-1][where[index, there, 0], where[index, there, 1]] = fresh[index]
    rotated = torch.zeros(after[0].shape, dtype=torch.float64)
    turned_q, turned_k = [x.double() for x in q], [x.double() for x in new_k]
    if step.rotary_dim:
        table = torch.rand(step.capacity + max(step.rows), step.rotary_dim // 2, generator=random) * 7
        passed["rotary_cos"], passed["rotary_sin"] = table.cos().to(step.dtype), table.sin().to(step.dtype)
        passed["rotary_interleaved"] = step.interleaved
        for index in range(batch):
            base = (step.rotary_seqlens or step.cached)[index]
            turned_k[index] = turn(step, passed, turned_k[index], [base + i for i in range(new[index])])
            moving = step.seen != EVERY
            turned_q[index] = turn(step, passed, turned_q[index], [base + i * moving for i in range(len(q[index]))])
            there = slice(step.cached[index], step.cached[index] + new[index])
            rotated[where[index, there, 0], where[index, there, 1]] = turned_k[index]
        turned_q = [x.to(step.dtype).double() for x in turned_q]  # as the cache has it, and so q
    turned_k = [x.to(step.dtype) for x in turned_k]
    keys = [torch.cat([a[s:], b]).double() for a, b, s in zip(old_k, turned_k, first, strict=True)]
    values = [torch.cat([a[s:], b]).double() for a, b, s in zip(old_v, new_v, first, strict=True)]
    passed |= {"q": _rows(step.ragged_q, q, passed, "cu_seqlens_q"), "k_cache": caches[0], "v_cache": caches[1]}
    if step.ragged_q:
        passed["max_seqlen_q"] = max(step.rows)
    if step.new is not None:
        passed["k"] = _rows(step.ragged_new, new_k, passed, "cu_seqlens_k_new")
        passed["v"] = _rows(step.ragged_new, new_v, passed, "cu_seqlens_k_new")
    for name, value in (
        ("cache_seqlens", step.cached),
        ("cache_leftpad", step.leftpad),
        ("rotary_seqlens", step.rotary_seqlens),
    ):
        if value is not None:
            passed[name] = torch.tensor(value, dtype=torch.int32)
    on_device = {}
    for name, value in passed.items():
        on_device[name] = _moved(value, device) if isinstance(value, torch.Tensor) else value
    return Run(on_device, after[0], after[1], rotated, Inputs(turned_q, keys, values, None, on_device))


def _moved(x: torch.Tensor, device: str) -> torch.Tensor:
    """On the device with the same strides."""
    if device == "cpu":
        return x
    whole = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
    return whole.copy_(x)


def turn(step: Step, passed: dict[str, Any], x: torch.Tensor, positions: list[int]) -> torch.Tensor:
    """Rotate ``x`` ``[rows, heads, columns]``, pair by pair."""
    result, half = x.clone(), step.rotary_dim // 2
    for row, position in enumerate(positions):
        for pair in range(half):
            one, other = (2 * pair, 2 * pair + 1) if step.interleaved else (pair, half + pair)
            cos, sin = float(passed["rotary_cos"][position, pair]), float(passed["rotary_sin"][position, pair])
            result[row, :, one] = x[row, :, one] * cos - x[row, :, other] * sin
            result[row, :, other] = x[row, :, one] * sin + x[row, :, other] * cos
    return result


def _places(step: Step, passed: dict[str, Any], random: torch.Generator) -> torch.Tensor:
    """Where the keys of every request lie; ``passed`` gets the tables and indices that say it."""
    batch = len(step.rows)
    outer = batch + SPARE_REQUESTS * step.indexed
    chosen = torch.randperm(outer, generator=random)[:batch] if step.indexed else torch.arange(batch)
    if step.indexed:
        passed["cache_batch_idx"] = chosen.int()
    key = torch.arange(step.capacity)
    if not step.page_size:
        return torch.stack(torch.broadcast_tensors(chosen.unsqueeze(1), key), dim=-1)
    count = step.capacity // step.page_size
    pages = torch.randperm(outer * count + SPARE_PAGES, generator=random)[: outer * count].view(outer, count)
    table = pages.int()
    for index in range(batch):  # what no key is in need not be there
        used = step.cached[index] + (step.new[index] if step.new else 0)
        table[chosen[index], -(-used // step.page_size) :] = -1
    passed["page_table"] = table
    page = pages[chosen][:, key // step.page_size]
    return torch.stack(torch.broadcast_tensors(page, key % step.page_size), dim=-1)


def _empty_cache(step: Step, columns: int) -> torch.Tensor:
    batch = len(step.rows) + SPARE_REQUESTS * step.indexed
    outer, inner = (batch, step.capacity)
    if step.page_size:
        outer, inner = batch * (step.capacity // step.page_size) + SPARE_PAGES, step.page_size
    shape = {
        "contiguous": (outer, inner, step.heads[1], columns),
        "heads first": (outer, step.heads[1], inner, columns),
        "longer": (outer, inner + 16, step.heads[1], columns),
        "together": (outer, inner, 2 * step.heads[1], columns),
    }[step.layout]
    whole = torch.full(shape, math.nan).to(step.dtype)
    if step.layout == "heads first":
        return whole.transpose(1, 2)
    return whole[:, :inner, : step.heads[1]]


def _rows(ragged: bool, parts: list[torch.Tensor], passed: dict[str, Any], name: str) -> torch.Tensor:
    if not ragged:
        return torch.stack(parts)
    lens = torch.tensor([0, *map(len, parts)])
    passed[name] = lens.cumsum(0).int()
    return torch.cat(parts)


def call(run: Run, **own: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the function returns: out and log-sum-exp."""
    out, lse = flash_attn_with_kvcache(**run.passed, **own, return_softmax_lse=True)
    return out, lse


def check(step: Step, run: Run, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Assert that a call returned and left in the caches what it means."""
    check_caches(step, run)
    q = run.passed["q"]
    assert out.shape == (*q.shape[:-1], step.dims[1]) and out.dtype == step.dtype
    assert lse.shape == (*q.shape[:-3], q.shape[-2], q.shape[-3]) and lse.dtype == torch.float32
    out, lse = out.cpu().double(), lse.cpu().double().transpose(-1, -2)
    if not step.ragged_q:
        out, lse = out.flatten(0, 1), lse.flatten(0, 1)
    options = dict(step.arguments)
    meaning = Call(
        seen=step.seen, heads=step.heads, dims=step.dims, dtype=step.dtype,
        softcap=options.get("softcap", 0.0), scale=options.get("softmax_scale"),
    )  # fmt: skip
    first = 0
    # A rotated number may be rounded to the other side here; that moves a score, and so every weight.
    unit = UNIT[step.dtype]
    slack = 0.004 if step.rotary_dim else 0.0
    for index, rows in enumerate(step.rows):
        got_out, got_lse = out[first : first + rows], lse[first : first + rows]
        first += rows
        wanted, wanted_lse, spread = attend(meaning, run.meant, index)
        blind = wanted_lse == -math.inf
        assert torch.equal(blind, got_lse == -math.inf), f"request {index}: rows that see nothing"
        error = (got_lse - wanted_lse).masked_fill(blind, 0.0).abs()
        assert not error.numel() or error.max() < 2e-4 + slack + meaning.softcap * 2.0**-9, f"{index}: {error.max()}"
        bound = (unit + slack + meaning.softcap * 2.0**-8) * spread + unit * wanted.abs() + 1e-5
        excess = (got_out - wanted).abs() - bound
        assert not excess.numel() or bool((excess <= 0).all()), f"request {index}: out {excess.max()} beyond its bound"
    assert first == len(out)


def check_caches(step: Step, run: Run) -> None:
    """Keys and values lie where they should, bit for bit, and nothing else was written."""
    k_cache, v_cache = run.passed["k_cache"].cpu(), run.passed["v_cache"].cpu()
    assert _same_bits(v_cache, run.v_cache)
    rotated = run.rotated.flatten(2).any(dim=2)
    assert _same_bits(k_cache[~rotated], run.k_cache[~rotated])
    turned, straight = k_cache[rotated].split([step.rotary_dim, step.dims[0] - step.rotary_dim], dim=-1)
    assert _same_bits(straight, run.k_cache[rotated][..., step.rotary_dim :])
    wanted = run.rotated[rotated][..., : step.rotary_dim]
    assert torch.allclose(turned.double(), wanted, rtol=UNIT[step.dtype], atol=2e-6)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.int16), other.contiguous().view(torch.int16))
