"""Caches of keys and values as a launch can read them where they lie: views and tables of pages, never a copy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._call.pieces import pieces, pieces_apart, ragged_offsets, ragged_rows
from .._call.sizes import PAGE_SIZES
from ..errors import expected

_TILE = 128  # keys that one copy takes at most


@dataclass(frozen=True)
class Cache:
    """Keys and values of B requests, in pages or not.

    ``k`` and ``v`` are ``[pages, page_size, Hkv, columns]``, int32 ``table`` ``[B, n]`` the page numbers of every
    request. Requests that are not paged have one page each, and None stands for the table 0, 1, 2, ...
    """

    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor | None

    @property
    def page_size(self) -> int:
        """Keys in a page."""
        return self.k.shape[1]

    @property
    def capacity(self) -> int:
        """Keys that a request has room for."""
        return self.page_size * (1 if self.table is None else self.table.shape[1])

    def place_of(self, request: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Page and index in it of the keys that stand at ``position`` of requests; any number where there is none."""
        if self.table is None:
            return request, position
        number = (position // self.page_size).clamp(0, self.table.shape[1] - 1)
        return self.table[request, number].long(), position % self.page_size


@dataclass(frozen=True)
class Readable:
    """What a launch is told of the keys, by the names of :class:`~skimattn.Params`."""

    k: torch.Tensor
    v: torch.Tensor
    page_table: torch.Tensor | None = None
    cu_seqlens_k: torch.Tensor | None = None
    seqused_k: torch.Tensor | None = None
    max_seqlen_k: int | None = None


def cache_of(k: torch.Tensor, v: torch.Tensor, page_table: torch.Tensor | None, index: torch.Tensor | None) -> Cache:
    """``index``: ``cache_batch_idx``, by which requests choose a row of the page table, or of caches without one."""
    if index is None or page_table is None:
        return Cache(k, v, page_table if index is None else index.unsqueeze(1))
    # Clamped: a number that is not true must not stop the device.
    return Cache(k, v, page_table.index_select(0, index.clamp(0, page_table.shape[0] - 1)))


def readable_cache(cache: Cache, lengths: torch.Tensor | None, leftpad: torch.Tensor | None) -> Readable:
    """The keys of every request from its ``leftpad`` on, up to ``lengths``; None = from the first, and all."""
    if leftpad is not None:
        used = (cache.capacity if lengths is None else lengths) - leftpad
        return _padded(cache, used.clamp(min=0), leftpad)
    if cache.table is None:
        return Readable(cache.k, cache.v, seqused_k=lengths)
    k, v, table = _in_pages(cache, _page_rows(cache.page_size))
    return Readable(k, v, page_table=table, seqused_k=lengths)


def _padded(cache: Cache, used: torch.Tensor, leftpad: torch.Tensor) -> Readable:
    """Requests that begin at some key of their own.

    Where the requests of a cache follow each other they are a ragged batch. Otherwise each key is a page, since pages
    of more would have to begin at the padding.
    """
    if cache.table is None:
        apart = pieces_apart("k_cache", cache.k, 1)
        if apart == pieces_apart("v_cache", cache.v, 1) and apart >= cache.page_size:
            k, v = (ragged_rows(x, apart) for x in (cache.k, cache.v))
            offsets = ragged_offsets(leftpad, apart, len(k))
            return Readable(k, v, cu_seqlens_k=offsets, seqused_k=used, max_seqlen_k=cache.page_size)
    k, v, table = _in_pages(cache, 1)
    key = torch.arange(cache.capacity, device=leftpad.device) + leftpad.unsqueeze(1)
    return Readable(k, v, page_table=table.gather(1, key.clamp(0, cache.capacity - 1)), seqused_k=used)


def _page_rows(page_size: int) -> int:
    """Keys of the pages that kernels see: all of ours, or a part that divides them."""
    if page_size in PAGE_SIZES:
        return page_size
    parts = [size for size in PAGE_SIZES if page_size % size == 0]
    _, best = max((min(size & -size, _TILE), size) for size in parts)  # what one copy takes decides the speed
    return int(best)


def _in_pages(cache: Cache, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """k and v in pages of ``rows`` keys, and the table of these."""
    k, v, table = cache.k, cache.v, cache.table
    if table is None:
        table = torch.arange(len(k), dtype=torch.int32, device=k.device).unsqueeze(1)
    if rows == cache.page_size:
        return k, v, table
    apart = pieces_apart("k_cache", k, rows)
    if apart != pieces_apart("v_cache", v, rows):
        raise expected("v_cache", "pages or requests as far apart as those of k_cache", f"strides {list(v.stride())}")
    part = torch.arange(cache.page_size // rows, dtype=torch.int32, device=k.device)
    return pieces(k, rows, apart), pieces(v, rows, apart), (table.unsqueeze(2) * apart + part).flatten(1)
