"""``flash_attn_with_kvcache``: append to a cache of keys and values, rotate, attend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.compiler import is_compiling

from .._call.checks import require_tensor
from .._call.validate import validate
from ..params import UNLIMITED, Params
from ._append import append, quantized, rows_of
from ._cache import readable_cache
from ._kvcache_checks import Checked, New, check, check_positions
from ._shared import Result, Threshold, cap, compute, hint, readable, refuse, window_arguments


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    qv: None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k_new: torch.Tensor | None = None,
    max_seqlen_q: int | torch.Tensor | None = None,
    rotary_seqlens: torch.Tensor | None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = UNLIMITED,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: object = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    *,
    skip_softmax_threshold: Threshold = None,
    stats: torch.Tensor | None = None,
) -> Result:
    """Attention over caches, to which ``k`` and ``v`` are appended first, in place.

    Everything is computed on the device, also where keys go, so a CUDA graph may hold the call: lengths, tables and
    indices may change from replay to replay. The caches are never copied; only q, k and v may be.

    Args:
        q: ``[B, Sq, Hq, D]``, or ``[total_q, Hq, D]`` with ``cu_seqlens_q``.
        k_cache: ``[B_cache, S, Hkv, D]``, or pages ``[pages, page_size, Hkv, D]`` with ``page_table``, of any size.
        v_cache: as ``k_cache``, with Dv columns.
        k: new keys ``[B, S_new, Hkv, D]``, or ``[total_new, Hkv, D]`` with ``cu_seqlens_k_new``. They become keys
            ``cache_seqlens``, ``cache_seqlens + 1``, ... of their request, which then counts that many more. Of the
            cache's type, or of q's over a cache of e4m3: rotated, divided by ``k_descale``, clamped, rounded.
        v: new values, as ``k`` with Dv columns (divided by ``v_descale``).
        qv: refused unless None.
        rotary_cos: ``[positions, rotary_dim / 2]`` of q's type, rotary_dim at most D; with ``k``, it rotates q and k,
            in float32. New key i stands at position ``cache_seqlens + i``; row i of q likewise with a causal mask, a
            window or chunks, and otherwise at ``cache_seqlens``.
        rotary_sin: as ``rotary_cos``.
        cache_seqlens: int, or int32 ``[B]``: keys in the cache, those before ``cache_leftpad`` included; needed with
            ``k``, otherwise None = all.
        cache_batch_idx: int32 ``[B]``: which row of caches, or of ``page_table``, is the request's; default 0, 1, ...
            With caches of S keys kernels read pages of up to 1024 keys that divide S: best a multiple of 64.
        cache_leftpad: int32 ``[B]``: keys before it are not seen, and do not count in masks. In pages or with
            ``cache_batch_idx`` every key becomes a page of its own, which is slow.
        page_table: int32 ``[B, max_pages]`` page numbers.
        cu_seqlens_q: int32 ``[B + 1]`` offsets of a ragged q.
        cu_seqlens_k_new: int32 ``[B + 1]`` offsets of ragged ``k`` and ``v``.
        max_seqlen_q: the most rows of a request, beside ``cu_seqlens_q``.
        rotary_seqlens: int32 ``[B]`` positions that take the place of ``cache_seqlens`` in the rotation.
        q_descale: of e4m3, float32 ``[B, Hkv]``.
        k_descale: likewise.
        v_descale: likewise.
        softmax_scale: default ``D ** -0.5``.
        causal: as in :func:`flash_attn_func`, aligned to the last key in use, the new ones included.
        window_size: as there.
        attention_chunk: as there.
        softcap: as there.
        rotary_interleaved: rotate columns 0 and 1, 2 and 3, ...; False: 0 and rotary_dim / 2, 1 and the next, ...
        scheduler_metadata: no effect.
        num_splits: no effect; the bits never depend on it.
        pack_gqa: no effect.
        sm_margin: no effect.
        return_softmax_lse: return ``(out, lse)``, the log-sum-exp as float32 ``[B, Hq, Sq]`` or ``[Hq, total_q]``.
        skip_softmax_threshold: as in :class:`skimattn.Params`.
        stats: as there.

    New keys that do not fit the cache, or whose page number is not one, are refused on the CPU, and on a GPU, where
    nothing is read back, not written.
    """
    refuse(0.0, qv=qv)
    q = readable(require_tensor("q", q))
    given = {
        "rotary_cos": rotary_cos,
        "rotary_sin": rotary_sin,
        "cache_batch_idx": cache_batch_idx,
        "cache_leftpad": cache_leftpad,
        "page_table": page_table,
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k_new": cu_seqlens_k_new,
        "rotary_seqlens": rotary_seqlens,
    }
    checked = check(q, k_cache, v_cache, k, v, cache_seqlens, given, interleaved=rotary_interleaved)
    mask = window_arguments(causal, window_size, attention_chunk)
    seen = readable_cache(checked.cache, checked.used, checked.leftpad)
    arguments: dict[str, Any] = {
        "page_table": seen.page_table,
        "cu_seqlens_q": checked.cu_seqlens_q,
        "cu_seqlens_k": seen.cu_seqlens_k,
        "max_seqlen_q": hint(max_seqlen_q, cu_seqlens_q, None),
        "max_seqlen_k": seen.max_seqlen_k,
        "seqused_k": seen.seqused_k,
        "softmax_scale": softmax_scale,
        "softcap": cap(softcap),
        "q_descale": q_descale,
        "k_descale": k_descale,
        "v_descale": v_descale,
        "skip_softmax_threshold": skip_softmax_threshold,
        "stats": stats,
    }
    if checked.new is not None:
        if not is_compiling():  # what is refused must not have been appended
            validate(Params(q, seen.k, seen.v, **mask, **{name: x for name, x in arguments.items() if x is not None}))
        q = _append(q, checked, checked.new, (k_descale, v_descale), moving=mask["mask"] != "full")
    out, lse = compute({"q": q, "k": seen.k, "v": seen.v}, mask, with_lse=return_softmax_lse, **arguments)
    return out if lse is None else (out, lse)


def _append(
    q: torch.Tensor,
    checked: Checked,
    new: New,
    descales: tuple[torch.Tensor | None, torch.Tensor | None],
    *,
    moving: bool,
) -> torch.Tensor:
    """Write the new keys and values; returns q, rotated as they are. ``moving``: each row of q by its own position."""
    rows, k = rows_of(new.k, new.cu_seqlens), new.k
    if new.rotary is not None:
        places = new.rotary.positions(rows, moving=True)
        places_q = new.rotary.positions(rows_of(q, checked.cu_seqlens_q), moving=moving)
        check_positions(new.rotary, places, places_q)
        k, q = new.rotary.turn(k, places), new.rotary.turn(q, places_q)
    cache = checked.cache
    k, v = (quantized(x, cache.k.dtype, descale, rows) for x, descale in zip((k, new.v), descales, strict=True))
    append(cache, k, v, rows, new.lengths)
    return q
