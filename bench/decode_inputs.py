"""Inputs of decode steps: paged caches whose pages lie in no order, N(0,1) or planted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.nn.functional as F

from .decode_work import Work

_DTYPES = {"bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}
_HIGH, _LOW, _ROW, _NOISE = 11.0, -10.0, 16.0, 0.5  # see bench.inputs.planted: about 30 nats apart


@dataclass(frozen=True)
class Cache:
    """``copies`` caches of the same lengths in one pool, so that calls in turn find none of theirs in L2.

    Args:
        q: [total rows, Hq, D].
        k: [pages, page, Hkv, D]; a view, if the pool is laid out otherwise.
        v: likewise; Dv columns.
        tables: int32 [B, max pages] for each copy; pages behind a request's end are page 0.
        lens: int32 [B].
        offsets: int32 [B + 1] of the rows in q.
        drop: bool [copies, B, Hkv, blocks], what was planted; None: nothing.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    tables: tuple[torch.Tensor, ...]
    lens: torch.Tensor
    offsets: torch.Tensor
    drop: torch.Tensor | None = None


def cache_of(work: Work, copies: int, device: str) -> Cache:
    """The tensors of a row."""
    generator = torch.Generator(device=device).manual_seed(0)
    lens, offsets = (_int32(values, device) for values in (work.lens, [0, *accumulate(work.rows)]))
    tables = _tables(work, copies, device)
    k, v = _pool(work, copies, device)
    q = torch.empty(sum(work.rows), work.heads_q, work.head_dim, dtype=torch.bfloat16, device=device)
    if work.planted is None:
        for tensor in (q, k) if work.layout == "latent" else (q, k, v):
            fill_normal(tensor, generator)
        return Cache(q, k, v, tables, lens, offsets)
    drop = dropped(work, copies, generator)
    _plant(work, Cache(q, k, v, tables, lens, offsets, drop), generator)
    return Cache(q, k, v, tables, lens, offsets, drop)


def dropped(work: Work, copies: int, generator: torch.Generator) -> torch.Tensor:
    """Which blocks are planted low: of each KV head of each request exactly the share asked for, never the first."""
    assert work.planted is not None
    return lowest_blocks(ranked_blocks(work, copies, generator), work.planted)


def ranked_blocks(work: Work, copies: int, generator: torch.Generator) -> torch.Tensor:
    """In which order blocks are planted low as more of them are: int64 [copies, B, Hkv, blocks], the first one last."""
    [length] = {*work.lens}
    blocks, odd = divmod(length, work.block)
    if odd:
        raise ValueError(f"lens: expected multiples of {work.block} for planted inputs (got {length})")
    size = (copies, work.batch, work.heads_kv, blocks)
    order = torch.rand(size, device=generator.device, generator=generator)
    order[..., 0] = 2.0
    return order.argsort(-1).argsort(-1)


def lowest_blocks(rank: torch.Tensor, share: float) -> torch.Tensor:
    """A share of the blocks by their ranks, bool as these are laid out."""
    blocks = rank.shape[-1]
    return rank < min(round(share * blocks), blocks - 1)


def repaged(cache: Cache, work: Work, page: int) -> Cache:
    """The same keys and values on pages of another size, which again lie in no order (layout ``split``)."""
    other = Work("", work.lens, work.rows, page=page)
    tables = _tables(other, len(cache.tables), str(cache.k.device))
    pools = []
    for pool in (cache.k, cache.v):
        fresh = torch.empty(_pages(other) * len(tables), page, *pool.shape[2:], dtype=pool.dtype, device=pool.device)
        for old, new in zip(cache.tables, tables, strict=True):
            for request, length in enumerate(work.lens):
                keys = pool[old[request, : -(-length // work.page)].long()].flatten(0, 1)
                count = -(-length // page)
                padded = F.pad(keys[:length], (0, 0, 0, 0, 0, count * page - length))
                fresh[new[request, :count].long()] = padded.view(count, page, *pool.shape[2:])
        pools.append(fresh)
    return replace(cache, k=pools[0], v=pools[1], tables=tables)


def keys_of(cache: Cache, work: Work, copy: int, request: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one request in their order, [len, Hkv, D] and [len, Hkv, Dv], in float32."""
    pages = cache.tables[copy][request, : -(-work.lens[request] // work.page)].long()
    k, v = (pool[pages].flatten(0, 1)[: work.lens[request]].float() for pool in (cache.k, cache.v))
    return k, v


def records(work: Work, tile_n: int, decode: bool, group_rows: int) -> int:
    """Visited tiles that a kernel counts where requests are alike and every group sees all tiles.

    Every query head that has a row in a group records the group's tiles. Groups of the decode kernel hold packed rows
    in (row, head) order, those of the prefill kernel rows of one head.
    """
    [rows], [length] = {*work.rows}, {*work.lens}
    tiles = -(-length // tile_n)
    if not decode:
        return work.batch * work.heads_q * -(-rows // group_rows) * tiles
    heads = work.heads_q // work.heads_kv
    packed = [row % heads for row in range(rows * heads)]
    each = sum(len({*packed[start : start + group_rows]}) for start in range(0, len(packed), group_rows))
    return work.batch * work.heads_kv * each * tiles


def planted_counts(work: Work, cache: Cache, tile_n: int, decode: bool, group_rows: int) -> tuple[int, int]:
    """(visited, skipped) tiles of one call on copy 0: skipped are those whose blocks are all low."""
    visited = records(work, tile_n, decode, group_rows)
    if cache.drop is None:
        return visited, 0
    keys = cache.drop[0].repeat_interleave(work.block, -1)
    padded = F.pad(keys, (0, -keys.shape[-1] % tile_n), value=True)
    low = int(padded.view(*padded.shape[:-1], -1, tile_n).all(-1).sum())
    tiles = work.batch * work.heads_kv * (padded.shape[-1] // tile_n)
    return visited, low * visited // tiles


def _int32(values: object, device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def _pages(work: Work) -> int:
    return sum(-(-length // work.page) for length in work.lens)


def _tables(work: Work, copies: int, device: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(_pages(work) * copies, generator=generator).to(torch.int32)
    counts = [-(-length // work.page) for length in work.lens]
    tables, start = [], 0
    for _ in range(copies):
        table = torch.zeros(work.batch, max(counts), dtype=torch.int32)
        for request, count in enumerate(counts):
            table[request, :count] = order[start : start + count]
            start += count
        tables.append(table.to(device))
    return tuple(tables)


def _pool(work: Work, copies: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    pages, width = _pages(work) * copies, work.head_dim

    def empty(*size: int) -> torch.Tensor:
        return torch.empty(pages, *size, dtype=_DTYPES[work.cache], device=device)

    if work.layout == "joined":
        pool = empty(work.heads_kv, work.page, 2 * width).transpose(1, 2)
        return pool[..., :width], pool[..., width:]
    k = empty(work.page, work.heads_kv, width)
    return k, k[..., : work.head_dim_v] if work.layout == "latent" else empty(work.page, work.heads_kv, width)


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Slices of at most a quarter of a GB in float32, so that filling takes no memory to speak of."""
    step = max(1, (1 << 26) // max(tensor[0].numel(), 1))
    return (tensor[start : start + step] for start in range(0, len(tensor), step))


def fill_normal(tensor: torch.Tensor, generator: torch.Generator) -> None:
    """N(0,1) everywhere."""
    for part in _parts(tensor):
        part.copy_(torch.randn(part.shape, device=part.device, generator=generator))


def _plant(work: Work, cache: Cache, generator: torch.Generator) -> None:
    """Rows near one direction, keys far along it or far against it; v N(0,1), or part of k (latent)."""
    device = cache.q.device

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator) * _NOISE

    direction = F.normalize(noise(work.head_dim), dim=0)
    cache.q.copy_(noise(*cache.q.shape) + _ROW * direction)
    unit = math.sqrt(work.head_dim / 128)  # keeps the distance in nats when softmax_scale is head_dim ** -0.5
    assert cache.drop is not None
    for copy, drop in enumerate(cache.drop):
        for request, length in enumerate(work.lens):
            level = torch.where(drop[request], _LOW * unit, _HIGH * unit).repeat_interleave(work.block, 1)
            keys = noise(length, work.heads_kv, work.head_dim) + level.t()[:, :, None] * direction
            store_keys(cache, work, copy, request, keys)
    if work.layout != "latent":
        fill_normal(cache.v, generator)


def store_keys(cache: Cache, work: Work, copy: int, request: int, keys: torch.Tensor) -> None:
    """Put the keys of a request, [len, Hkv, D], on its pages."""
    pages = F.pad(keys, (0, 0, 0, 0, 0, -len(keys) % work.page)).view(-1, work.page, *keys.shape[1:])
    cache.k[cache.tables[copy][request].long()] = pages.to(cache.k.dtype)
