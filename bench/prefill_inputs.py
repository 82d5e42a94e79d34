"""Inputs of the rows of ``bench rows``: N(0,1) or planted, with or without pages, whose order is shuffled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from . import decode_work
from .decode_inputs import cache_of
from .inputs import TORCH_DTYPES, Inputs, planted
from .prefill_work import Work


@dataclass(frozen=True)
class Data:
    """The tensors of a row.

    Args:
        q: [total rows, Hq, D].
        k: [total keys, Hkv, D], or [pages, page, Hkv, D].
        v: likewise with Dv columns.
        offsets: int32 [B + 1] of the rows.
        offsets_k: int32 [B + 1] of keys without pages; ``offsets`` itself in self-attention.
        lens: int32 [B].
        table: int32 [B, pages of a request]; None: no pages.
        planted: what was planted, of which q, k and v are views; None: N(0,1).
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    offsets: torch.Tensor
    offsets_k: torch.Tensor
    lens: torch.Tensor
    table: torch.Tensor | None = None
    planted: Inputs | None = None


def data_of(work: Work, device: str) -> Data:
    """The tensors of a row."""
    offsets = _int32([0, *accumulate(work.rows)], device)
    offsets_k = offsets if work.rows == work.lens else _int32([0, *accumulate(work.lens)], device)
    lens = _int32(work.lens, device)
    dtype = TORCH_DTYPES[work.dtype]
    if work.page:
        cache = cache_of(_cached(work), 1, device)
        return Data(cache.q.to(dtype), cache.k, cache.v, offsets, offsets_k, lens, cache.tables[0])
    if work.planted is not None:
        made = planted(work.shape, work.planted, device)
        q, k, v = (tensor.flatten(0, 1) for tensor in (made.q, made.k, made.v))
        return Data(q, k, v[..., : work.head_dim_v].contiguous(), offsets, offsets_k, lens, planted=made)
    generator = torch.Generator(device=device).manual_seed(0)

    def draw(total: int, heads: int, columns: int) -> torch.Tensor:
        drawn = torch.float32 if dtype.itemsize == 1 else dtype  # 8 bits cannot be drawn
        return torch.randn((total, heads, columns), device=device, generator=generator, dtype=drawn).to(dtype)

    rows, keys = sum(work.rows), sum(work.lens)
    q, k = draw(rows, work.heads_q, work.head_dim), draw(keys, work.heads_kv, work.head_dim)
    return Data(q, k, draw(keys, work.heads_kv, work.head_dim_v), offsets, offsets_k, lens)


def request_keys(work: Work, data: Data, request: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one request in their order, [len, Hkv, D] and [len, Hkv, Dv]."""
    if data.table is None:
        part = slice(int(data.offsets_k[request]), int(data.offsets_k[request + 1]))
        return data.k[part], data.v[part]
    pages = data.table[request, : -(-work.lens[request] // work.page)].long()
    k, v = (pool[pages].flatten(0, 1)[: work.lens[request]] for pool in (data.k, data.v))
    return k, v


def _cached(work: Work) -> decode_work.Work:
    """The step of decode that has this cache."""
    made = decode_work.Work(work.label, work.lens, work.rows, work.heads_q, work.heads_kv, work.head_dim)
    return replace(made, page=work.page, cache=work.dtype)


def _int32(values: object, device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)
