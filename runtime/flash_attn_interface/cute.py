"""FlashAttention-4's functions on skimattn's kernels: one import changes, calls stay as they are.

``from skimattn.flash_attn_interface.cute import flash_attn_func, flash_attn_varlen_func``. Arguments, their order,
defaults and meaning are those of ``flash_attn/cute/interface.py`` (version 4.0.0.beta27). What is not named here means
what it does in :mod:`skimattn.flash_attn_interface`:

    window_size: as there, with None = unlimited. Sides that add up to less than 0, as those of (-1, -1), are no window;
        any other side below 0 is refused.
    learnable_sink: bf16, fp16 or float32 ``[Hq]``, one extra logit per head in the denominator.
    page_table: int32 ``[B, max_pages]`` page numbers; k and v are ``[pages, page_size, Hkv, D]``.
    qv, gather_kv_indices, score_mod, score_mod_bwd, mask_mod, aux_tensors, aux_scalars, block_sparse_tensors,
        block_sparse_tensors_bwd: refused unless None.
    min_seqlen_k, scheduler_metadata, seqlen_k_per_split, disable_scheduler_metadata: no effect.
    return_lse: compute the log-sum-exp. It has the sink in it, which is what a row that sees no key has.

What comes after ``*`` in a signature is our own, and one more than there:

    lse_with_sink: False leaves the sink out of the log-sum-exp, as :class:`skimattn.Params` does; the way from there is
        ``torch.logaddexp(lse, sink[:, None])``.

Both functions return ``(out, lse)``, ``lse`` None without ``return_lse``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._call.arguments import ARGUMENTS
from .._call.checks import integer, require_device, require_dtype, require_shape, require_tensor
from ..errors import expected
from ._shared import LOWEST, Length, Threshold, absent, cap, compute, dense, hint, mask_arguments, refuse, sides

__all__ = ["flash_attn_func", "flash_attn_varlen_func"]

Result = tuple[torch.Tensor, torch.Tensor | None]
_SINK_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def __getattr__(name: str) -> object:
    """Say of a name of flash-attn's that is not here why."""
    raise AttributeError(absent(__name__, name))


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    qv: None = None,
    gather_kv_indices: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int | None] = (None, None),
    learnable_sink: torch.Tensor | None = None,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    score_mod: None = None,
    score_mod_bwd: None = None,
    mask_mod: None = None,
    aux_tensors: None = None,
    aux_scalars: None = None,
    block_sparse_tensors: None = None,
    block_sparse_tensors_bwd: None = None,
    return_lse: bool = False,
    *,
    lse_with_sink: bool = True,
    dropout_p: float = 0.0,
    skip_softmax_threshold: Threshold = None,
    stats: torch.Tensor | None = None,
) -> Result:
    """Attention over requests of one length: q ``[B, Sq, Hq, D]``, k ``[B, Sk, Hkv, D]``, v ``[B, Sk, Hkv, Dv]``."""
    refuse(
        dropout_p,
        qv=qv,
        gather_kv_indices=gather_kv_indices,
        score_mod=score_mod,
        score_mod_bwd=score_mod_bwd,
        mask_mod=mask_mod,
        aux_tensors=aux_tensors,
        aux_scalars=aux_scalars,
        block_sparse_tensors=block_sparse_tensors,
        block_sparse_tensors_bwd=block_sparse_tensors_bwd,
    )
    return _compute(
        {"q": q, "k": k, "v": v},
        _mask(causal, window_size),
        learnable_sink,
        with_lse=return_lse,
        lse_with_sink=lse_with_sink,
        softmax_scale=softmax_scale,
        softcap=cap(softcap),
        skip_softmax_threshold=skip_softmax_threshold,
        stats=stats,
    )


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    qv: None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: Length = None,
    max_seqlen_k: Length = None,
    min_seqlen_k: int | None = None,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    gather_kv_indices: None = None,
    page_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int | None] = (None, None),
    learnable_sink: torch.Tensor | None = None,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    score_mod: None = None,
    score_mod_bwd: None = None,
    mask_mod: None = None,
    block_sparse_tensors: None = None,
    aux_tensors: None = None,
    aux_scalars: None = None,
    return_lse: bool = False,
    scheduler_metadata: object = None,
    seqlen_k_per_split: int | None = None,
    disable_scheduler_metadata: bool = False,
    *,
    lse_with_sink: bool = True,
    dropout_p: float = 0.0,
    skip_softmax_threshold: Threshold = None,
    stats: torch.Tensor | None = None,
) -> Result:
    """Attention over requests of different lengths, q ragged or batched; k ragged, batched or in pages.

    Either is ``[total, heads, D]`` with its ``cu_seqlens_*``, or as in :func:`flash_attn_func` without. v is as k.
    """
    refuse(
        dropout_p,
        qv=qv,
        gather_kv_indices=gather_kv_indices,
        score_mod=score_mod,
        score_mod_bwd=score_mod_bwd,
        mask_mod=mask_mod,
        block_sparse_tensors=block_sparse_tensors,
        aux_tensors=aux_tensors,
        aux_scalars=aux_scalars,
    )
    return _compute(
        {"q": q, "k": k, "v": v},
        _mask(causal, window_size),
        learnable_sink,
        with_lse=return_lse,
        lse_with_sink=lse_with_sink,
        cu_seqlens_q=dense(cu_seqlens_q),
        cu_seqlens_k=dense(cu_seqlens_k),
        max_seqlen_q=hint(max_seqlen_q, cu_seqlens_q, seqused_q),
        max_seqlen_k=hint(max_seqlen_k, cu_seqlens_k, seqused_k),
        seqused_q=dense(seqused_q),
        seqused_k=dense(seqused_k),
        page_table=dense(page_table),
        softmax_scale=softmax_scale,
        softcap=cap(softcap),
        skip_softmax_threshold=skip_softmax_threshold,
        stats=stats,
    )


def _compute(
    tensors: dict[str, object],
    mask: dict[str, Any],
    learnable_sink: torch.Tensor | None,
    *,
    with_lse: bool,
    lse_with_sink: bool,
    **arguments: Any,
) -> Result:
    """Launch a call, and add the sink to its log-sum-exp."""
    sinks = None if learnable_sink is None else _sinks(learnable_sink, require_tensor("q", tensors["q"]))
    out, lse = compute(tensors, mask, with_lse=with_lse, sinks=sinks, **arguments)
    if lse is not None and sinks is not None and lse_with_sink:
        torch.logaddexp(lse, sinks.unsqueeze(-1), out=lse)
    return out, lse


def _sinks(learnable_sink: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The sinks in a type that kernels read."""
    sink = require_tensor("learnable_sink", learnable_sink)
    require_dtype("learnable_sink", sink, *_SINK_DTYPES)
    require_device("learnable_sink", sink, q.device)
    require_shape("learnable_sink", sink, q.shape[-2:-1])
    return (sink if sink.dtype in ARGUMENTS["sinks"].dtypes else sink.to(torch.float32)).contiguous()


def _mask(causal: bool, window_size: object) -> dict[str, Any]:
    """The mask that FlashAttention-4 means, as arguments of :class:`~skimattn.Params`."""
    left, right = (None if side is None else integer("window_size", side, LOWEST) for side in sides(window_size))
    if causal:
        right = 0
    if left is not None and right is not None and left + right < 0:
        left, right = None, 0 if causal else None
    for side in (left, right):
        if side is not None and side < 0:
            wanted = "sides that are None or at least 0: no kernel has windows that leave the diagonal out"
            raise expected("window_size", wanted, window_size)
    return mask_arguments(-1 if left is None else left, -1 if right is None else right)
