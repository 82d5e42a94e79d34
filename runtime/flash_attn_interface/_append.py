"""New keys and values that go into a cache, and rotary embedding: torch operators that a CUDA graph can record.

Nothing is read back from the device, so positions, pages and what is to be left out are all computed there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._cache import Cache


@dataclass(frozen=True)
class Rows:
    """Whose rows a tensor ``[..., heads, columns]`` has: int64 ``[...]``.

    ``place`` counts the rows of a request; -1 is a row that belongs to none, whatever ``request`` says.
    """

    request: torch.Tensor
    place: torch.Tensor


@dataclass(frozen=True)
class Rotary:
    """Rotary embedding: ``cos`` and ``sin`` ``[positions, rotary_dim / 2]``, int32 ``first`` ``[B]``."""

    cos: torch.Tensor
    sin: torch.Tensor
    first: torch.Tensor
    interleaved: bool

    def positions(self, rows: Rows, *, moving: bool) -> torch.Tensor:
        """Of every row: its own, or without ``moving`` that of the request's first."""
        first = self.first.long()[rows.request]
        return first + rows.place if moving else first

    def turn(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """A rotated copy of ``x`` ``[..., heads, columns]``; columns after ``rotary_dim`` stay as they are."""
        # Clamped: a position that is not true must not stop the device.
        positions = positions.clamp(0, self.cos.shape[0] - 1)
        cos, sin = (table[positions].float().unsqueeze(-2) for table in (self.cos, self.sin))
        columns = 2 * self.cos.shape[1]
        turned = x[..., :columns].float().contiguous()
        pairs = turned.view(*turned.shape[:-1], -1, 2).unbind(-1) if self.interleaved else turned.chunk(2, dim=-1)
        both = (pairs[0] * cos - pairs[1] * sin, pairs[0] * sin + pairs[1] * cos)
        turned = torch.stack(both, dim=-1).flatten(-2) if self.interleaved else torch.cat(both, dim=-1)
        if x.dtype.itemsize == 1:
            most = torch.finfo(x.dtype).max
            turned = turned.clamp(-most, most)
        result = x.clone(memory_format=torch.contiguous_format)
        result[..., :columns] = turned.to(x.dtype)
        return result


def rows_of(x: torch.Tensor, cu_seqlens: torch.Tensor | None) -> Rows:
    """The rows of ``x``, batched ``[B, S, heads, columns]`` or ragged ``[total, heads, columns]``."""
    if cu_seqlens is None:
        batch, rows = x.shape[:2]
        request = torch.arange(batch, device=x.device).unsqueeze(1).expand(batch, rows)
        return Rows(request, torch.arange(rows, device=x.device).expand(batch, rows))
    row = torch.arange(len(x), dtype=torch.int32, device=x.device)
    found = torch.searchsorted(cu_seqlens[1:], row, right=True)
    request = found.clamp(max=len(cu_seqlens) - 2)
    return Rows(request, torch.where(found == request, row - cu_seqlens[request], -1).long())


def writable(cache: Cache, rows: Rows, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Page and index of every new row, which go behind ``lengths`` ``[B]`` keys; and whether that place exists."""
    position = lengths.long()[rows.request] + rows.place
    page, index = cache.place_of(rows.request, position)
    there = (position >= 0) & (position < cache.capacity) & (page >= 0) & (page < len(cache.k))
    return page, index, there & (rows.place >= 0)


def quantized(x: torch.Tensor, dtype: torch.dtype, descale: torch.Tensor | None, rows: Rows) -> torch.Tensor:
    """New rows as a cache of ``dtype`` keeps them: of 8 bits divided by ``descale``, which reading multiplies with.

    ``descale`` is None = 1, one number, or ``[B, Hkv]``. What is larger than the largest number becomes that.
    """
    if x.dtype == dtype:
        return x
    values, most = x.float(), torch.finfo(dtype).max
    if descale is not None:
        values = values / (descale[rows.request].unsqueeze(-1) if descale.dim() == 2 else descale)
    return values.clamp(-most, most).to(dtype)


def append(cache: Cache, k: torch.Tensor, v: torch.Tensor, rows: Rows, lengths: torch.Tensor) -> None:
    """Write new rows into the cache behind ``lengths`` ``[B]`` keys; those that have no place there are left out."""
    if rows.place.numel() == 0 or cache.k.shape[0] * cache.page_size == 0:
        return
    page, index, there = (x.flatten() for x in writable(cache, rows, lengths))
    # What is left out becomes another copy of the first row that is not: a write cannot be left out without asking the
    # device how many there are. If all are left out, a key is written that is there already.
    first = there.to(torch.uint8).argmax()
    source = torch.where(there, torch.arange(len(there), device=there.device), first)
    page = page[source].clamp(0, len(cache.k) - 1)
    index = index[source].clamp(0, cache.page_size - 1)
    for whole, new in ((cache.k, k), (cache.v, v)):
        place, values = _bits(whole), _bits(new.reshape(-1, *new.shape[-2:]))
        place.index_put_((page, index), torch.where(there.any(), values[source], place[page, index]))


def _bits(x: torch.Tensor) -> torch.Tensor:
    """8-bit numbers as bytes, which every operator of torch takes."""
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x
