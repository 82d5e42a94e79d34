"""What :func:`flash_attn_with_kvcache` refuses by the names of its own arguments, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.compiler import is_compiling

from .._call.ambient import shielded
from .._call.checks import (
    integer,
    require_aligned,
    require_device,
    require_dtype,
    require_memory,
    require_shape,
    require_tensor,
    require_tma_strides,
)
from .._call.dtypes import keys_dtypes
from .._call.values import check_offsets
from ..errors import expected
from ._append import Rotary, rows_of, writable
from ._cache import Cache, cache_of

Given = Mapping[str, torch.Tensor | None]


@dataclass(frozen=True)
class New:
    """What is appended: k and v, batched or with the offsets ``cu_seqlens`` ``[B + 1]``, behind ``lengths`` ``[B]``."""

    k: torch.Tensor
    v: torch.Tensor
    cu_seqlens: torch.Tensor | None
    lengths: torch.Tensor
    rotary: Rotary | None


@dataclass(frozen=True)
class Checked:
    """The call's cache, how many keys of it are used and left out, ``[B]`` (None = all, none), and what is new."""

    cache: Cache
    used: torch.Tensor | None
    leftpad: torch.Tensor | None
    cu_seqlens_q: torch.Tensor | None
    new: New | None


def check(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    cache_seqlens: int | torch.Tensor | None,
    given: Given,
    *,
    interleaved: bool,
) -> Checked:
    """Everything that is not an argument of :class:`~skimattn.Params` too; ``given``: the other tensors by name."""
    batch = _requests(q, given["cu_seqlens_q"])
    counts = {"cu_seqlens_q": batch + 1, "cu_seqlens_k_new": batch + 1}
    vectors = {
        name: _vector(name, given[name], q, counts.get(name, batch))
        for name in ("cache_batch_idx", "cache_leftpad", "cu_seqlens_q", "cu_seqlens_k_new", "rotary_seqlens")
    }
    index, leftpad, offsets = (vectors[name] for name in ("cache_batch_idx", "cache_leftpad", "cu_seqlens_k_new"))
    table = _table(given["page_table"], q, batch if index is None else None)
    _check_caches(q, k_cache, v_cache, batch if index is None and table is None else None)
    cache = cache_of(k_cache, v_cache, table, index)
    if cache_seqlens is None or isinstance(cache_seqlens, torch.Tensor):
        lengths = _vector("cache_seqlens", cache_seqlens, q, batch)
    else:
        length = integer("cache_seqlens", cache_seqlens, 0)
        lengths = torch.full((batch,), length, dtype=torch.int32, device=q.device)
    rotary = _rotary(q, given, vectors["rotary_seqlens"], lengths, interleaved, appended=k is not None)
    new = _new(q, cache, k, v, offsets, lengths, batch, rotary)
    on_cpu = q.device.type == "cpu" and not is_compiling()
    if index is not None and on_cpu:
        _check_numbers("cache_batch_idx", index, len(k_cache if table is None else table) - 1)
    if new is not None and on_cpu:
        _check_new(cache, new)
    used = lengths
    if new is not None:
        used = new.lengths + (new.k.shape[1] if offsets is None else offsets.diff())
    elif lengths is not None and on_cpu:
        _check_numbers("cache_seqlens", lengths, cache.capacity)
    if leftpad is not None and on_cpu:
        _check_numbers("cache_leftpad", leftpad, cache.capacity if used is None else used)
    return Checked(cache, used, leftpad, vectors["cu_seqlens_q"], new)


def check_positions(rotary: Rotary, *positions: torch.Tensor) -> None:
    """That a rotation has all positions, on the CPU."""
    if rotary.cos.device.type != "cpu" or is_compiling():
        return
    for found in positions:
        if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < len(rotary.cos):
            ends = f"{int(found.min())} to {int(found.max())}"
            raise expected("rotary_cos", f"rows for the positions that are used, here 0 to {len(rotary.cos) - 1}", ends)


def _requests(q: torch.Tensor, cu_seqlens_q: torch.Tensor | None) -> int:
    """How many requests there are."""
    if q.dim() not in (3, 4):
        raise expected("q", "rank 4 [B, Sq, Hq, D] or rank 3 [total_q, Hq, D]", list(q.shape))
    if (q.dim() == 3) != (cu_seqlens_q is not None):
        wanted = "int32 [B + 1] with q of rank 3, None with rank 4"
        raise expected("cu_seqlens_q", wanted, "None" if cu_seqlens_q is None else "a tensor")
    if cu_seqlens_q is None:
        return q.shape[0]
    require_tensor("cu_seqlens_q", cu_seqlens_q)
    if cu_seqlens_q.dim() != 1 or len(cu_seqlens_q) < 1:
        raise expected("cu_seqlens_q", "rank 1 [B + 1]", list(cu_seqlens_q.shape))
    return len(cu_seqlens_q) - 1


def _vector(name: str, value: torch.Tensor | None, q: torch.Tensor, count: int) -> torch.Tensor | None:
    """An int32 tensor ``[count]`` without gaps, or None."""
    if value is None:
        return None
    _like_q(name, value, q, torch.int32)
    require_shape(name, value, [count])
    return value.contiguous()


def _table(value: torch.Tensor | None, q: torch.Tensor, batch: int | None) -> torch.Tensor | None:
    """``page_table`` with contiguous rows, as many as ``batch`` if that is known."""
    if value is None:
        return None
    _like_q("page_table", value, q, torch.int32)
    require_shape("page_table", value, ["B_cache" if batch is None else batch, "max_pages"])
    return value.contiguous()


def _check_caches(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: int | None) -> None:
    """That kernels can read the caches, since no copy is made of them, and that they go with ``q``."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        like = keys_dtypes(q.dtype) if name == "k_cache" else (k_cache.dtype,)
        _like_q(name, cache, q, *like)
        outer: int | str = "outer" if batch is None else batch
        if name == "k_cache":
            require_shape(name, cache, [outer, "keys", "Hkv", q.shape[-1]])
        else:
            require_shape(name, cache, [*k_cache.shape[:3], "Dv"])
        if cache.shape[1] < 1 or cache.shape[2] < 1:
            raise expected(name, "at least one key and one head", list(cache.shape))
        require_tma_strides(name, cache)
        if not is_compiling():
            require_aligned(name, require_memory(name, cache))
    if q.shape[-2] % k_cache.shape[2]:
        raise expected("q", f"a number of heads that is a multiple of k_cache's {k_cache.shape[2]}", q.shape[-2])


def _new(
    q: torch.Tensor,
    cache: Cache,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    offsets: torch.Tensor | None,
    lengths: torch.Tensor | None,
    batch: int,
    rotary: Rotary | None,
) -> New | None:
    """What is appended, which needs to be told where."""
    if k is None and v is None:
        if offsets is not None:
            raise expected("cu_seqlens_k_new", "None without k and v", "a tensor")
        return None
    for name, new, whole in (("k", k, cache.k), ("v", v, cache.v)):
        if new is None:
            raise expected(name, "new keys and new values, or neither", None)
        _like_q(name, new, cache.k, *dict.fromkeys((cache.k.dtype, q.dtype)))
        require_shape(name, new, [*_rows_of_new(k, offsets, batch), *whole.shape[2:]])
    if lengths is None:
        raise expected("cache_seqlens", "an int, or int32 [B], since k and v are appended there", None)
    assert k is not None and v is not None
    return New(k, v, offsets, lengths, rotary)


def _rows_of_new(k: torch.Tensor | None, offsets: torch.Tensor | None, batch: int) -> list[int | str]:
    assert k is not None
    if offsets is None:
        return [batch, k.shape[1] if k.dim() == 4 else "S_new"]
    return [k.shape[0] if k.dim() == 3 else "total_new"]


def _rotary(
    q: torch.Tensor,
    given: Given,
    first: torch.Tensor | None,
    lengths: torch.Tensor | None,
    interleaved: bool,
    *,
    appended: bool,
) -> Rotary | None:
    """Rotary embedding, or None."""
    cos, sin = given["rotary_cos"], given["rotary_sin"]
    if cos is None and sin is None:
        if first is not None:
            raise expected("rotary_seqlens", "None without rotary_cos and rotary_sin", "a tensor")
        return None
    for name, half in (("rotary_cos", cos), ("rotary_sin", sin)):
        if half is None:
            raise expected(name, "cosines and sines, or neither", None)
        _like_q(name, half, q, q.dtype)
        if half.dim() != 2 or len(half) < 1 or not 0 < 2 * half.shape[1] <= q.shape[-1]:
            raise expected(name, f"shape [positions, rotary_dim / 2], rotary_dim to {q.shape[-1]}", list(half.shape))
    assert cos is not None and sin is not None
    require_shape("rotary_sin", sin, cos.shape)
    if not appended:
        raise expected("rotary_cos", "None without k and v, since q is rotated beside them only", "a tensor")
    first = lengths if first is None else first
    if first is None:
        raise expected("cache_seqlens", "an int, or int32 [B], since k and v are appended there", None)
    return Rotary(cos, sin, first, bool(interleaved))


@shielded()
def _check_new(cache: Cache, new: New) -> None:
    """Contents of CPU tensors that say where new keys go."""
    count: int | torch.Tensor = new.k.shape[1]
    if new.cu_seqlens is not None:
        check_offsets("cu_seqlens_k_new", new.cu_seqlens, len(new.k))
        count = new.cu_seqlens.diff()
    _check_numbers("cache_seqlens", new.lengths, cache.capacity - count)
    page, _, there = writable(cache, rows_of(new.k, new.cu_seqlens), new.lengths)
    if not bool(there.all()):
        wanted = f"page numbers from 0 to {len(cache.k) - 1} where keys are appended"
        raise expected("page_table", wanted, page[~there].tolist())


def _check_numbers(name: str, value: torch.Tensor, most: int | torch.Tensor) -> None:
    """Of a CPU tensor, from 0."""
    if bool(((value < 0) | (value > most)).any()):
        limit = most.tolist() if isinstance(most, torch.Tensor) else most
        raise expected(name, f"numbers from 0 to {limit}", value.tolist())


def _like_q(name: str, value: object, q: torch.Tensor, *dtypes: torch.dtype) -> None:
    require_dtype(name, tensor := require_tensor(name, value), *dtypes)
    require_device(name, tensor, q.device)
