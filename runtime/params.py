"""``Params``: everything one call is told, by name."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch


@dataclass(slots=True, eq=False)
class Params:
    """One attention call. Cheap to make and reusable: repeated launches of one object are the fastest.

    Once it was launched on a GPU it cannot be changed any more; ``dataclasses.replace`` makes another one.

    Sizes: B requests, Hq query heads, Hkv key/value heads (Hq is a multiple), D and Dv columns of keys and values.

    Args:
        q: ``[B, Sq, Hq, D]``, or ``[total_q, Hq, D]`` with ``cu_seqlens_q``; bf16, fp16 or (on SM100) e4m3.
        k: ``[B, Sk, Hkv, D]``, ``[total_k, Hkv, D]`` with ``cu_seqlens_k``, or pages (see ``kv_layout``).
        v: as ``k`` with Dv columns.
        page_table: int32 ``[B, max_pages]`` page numbers; makes ``k`` and ``v`` page pools.
        kv_layout: of pages: ``"NHD"`` = ``[pages, page_size, Hkv, D]``, ``"HND"`` = ``[pages, Hkv, page_size, D]``.
        cu_seqlens_q: int32 ``[B + 1]`` row offsets of a ragged batch, starting at 0, ending at total_q.
        cu_seqlens_k: int32 ``[B + 1]`` key offsets of a ragged batch, starting at 0, ending at total_k.
        seqused_k: int32 ``[B]`` keys in use; default: all.
        max_seqlen_q: the most rows of a request. A hint that must hold: device values are never read back.
        max_seqlen_k: the most keys of a request, likewise.
        mask: ``"full"`` (also ``"padding"``), ``"causal"``, ``"window"``, ``"chunked"`` or ``"custom"``; causal,
            window and chunked are aligned bottom-right: query i stands at key i + len_k - len_q.
        window_size: of ``mask="window"``: keys to the left and right, both inclusive, -1 = unlimited.
        chunk_size: of ``mask="chunked"``: keys per chunk.
        custom_mask: of ``mask="custom"``: bool ``[Sq, Sk]``, ``[B, Sq, Sk]`` or ``[B, Hq, Sq, Sk]`` (ragged:
            ``[total_q, max_k]`` or ``[Hq, total_q, max_k]``), or the same packed by
            :func:`skimattn.pack_mask` (every launch packs a bool mask anew, into memory that it allocates).
        softmax_scale: factor of q.k; default ``D ** -0.5``.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 = off.
        alibi_slopes: float32 ``[Hq]``; ``slope * distance`` is subtracted from the scores.
        sinks: float32 ``[Hq]``, one extra logit per head in the denominator (natural logarithm).
        q_descale: of 8-bit q: float32, one element or ``[B, Hkv]``, finite and above 0; q counts times it.
        k_descale: likewise for k.
        v_descale: likewise for v.
        skip_softmax_threshold: None = dense; a float in [0, 1], or float32 ``[B]`` or ``[B, Hq]`` read on the device
            at run time = skip tiles whose scores are that much below the row maximum (exp domain, final value).
        stats: int64 ``[2]``, ``[B, 2]`` or ``[B, Hq, 2]``; (visited, skipped) tiles are added to it.
        skip_map: uint8 ``[B, Hq, groups, tiles]``, with ``stats``; visited tiles become 1 = kept or 2 = skipped.
        out: where to write, shaped as ``q`` with Dv columns and of its dtype; default: a new tensor. For 8-bit ``q``
            it is bf16, or fp16 if such a tensor is given.
        lse: float32 ``[B, Sq, Hq]`` or ``[total_q, Hq]`` to write the log-sum-exp of the kept keys to.
        return_lse: return ``(out, lse)``, with a new ``lse`` if none was given.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    page_table: torch.Tensor | None = None
    kv_layout: str = "NHD"
    cu_seqlens_q: torch.Tensor | None = None
    cu_seqlens_k: torch.Tensor | None = None
    seqused_k: torch.Tensor | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    mask: str = "full"
    window_size: tuple[int, int] = (-1, -1)
    chunk_size: int | None = None
    custom_mask: torch.Tensor | None = None
    softmax_scale: float | None = None
    softcap: float = 0.0
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    q_descale: torch.Tensor | None = None
    k_descale: torch.Tensor | None = None
    v_descale: torch.Tensor | None = None
    skip_softmax_threshold: float | torch.Tensor | None = None
    stats: torch.Tensor | None = None
    skip_map: torch.Tensor | None = None
    out: torch.Tensor | None = None
    lse: torch.Tensor | None = None
    return_lse: bool = False
    # What the launcher prepared for this object; never part of the meaning of the call.
    _prepared: object | None = field(default=None, init=False, repr=False)


class _Launched(Params):
    """A call that was launched. It is this class that forbids changes, since a frozen dataclass costs 2 us a call."""

    __slots__ = ()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """A new object (``dataclasses.replace`` makes one) was not launched yet."""
        object.__setattr__(self, "__class__", Params)
        self.__init__(*arguments, **named)  # type: ignore[misc]

    def __reduce__(self) -> tuple[type[Params], tuple[object, ...]]:
        """Copies, deep ones and pickles too, were not launched yet either."""
        return Params, tuple(getattr(self, item.name) for item in fields(Params) if item.init)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: the launch that was prepared would not know."""
        raise AttributeError(f"{name}: this call was launched and cannot change; dataclasses.replace makes another one")


def keep_prepared(params: Params, bound: object) -> None:
    """Let repeated launches of ``params`` find what was prepared, and forbid changes to it from now on."""
    if type(params) is Params:
        params._prepared = bound
        params.__class__ = _Launched
    elif type(params) is _Launched:
        object.__setattr__(params, "_prepared", bound)
