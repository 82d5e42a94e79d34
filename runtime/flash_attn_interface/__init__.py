"""FlashAttention-3's functions on skimattn's kernels: one import changes, calls stay as they are.

``from skimattn.flash_attn_interface import flash_attn_func, flash_attn_varlen_func``. Arguments, their order, defaults
and meaning are those of ``hopper/flash_attn_interface.py`` (version 3.0.0, as of August 2026);
:mod:`skimattn.flash_attn_interface.cute` has FlashAttention-4's. B requests, Hq query and Hkv key/value heads:

    q, k, v: bf16, fp16 or e4m3; copied where the last dimension has gaps, or the address or another stride
        is no multiple of 16 bytes.
    cu_seqlens_q, cu_seqlens_k: int32 ``[B + 1]`` offsets of a ragged q, or k and v; None with batched ones.
    max_seqlen_q, max_seqlen_k: the most rows and keys of a request, beside ``cu_seqlens_*``; otherwise not looked at,
        and as a tensor neither, which would be read back from the GPU.
    seqused_q, seqused_k: int32 ``[B]`` rows and keys in use, to which masks are aligned; other rows are not written.
    softmax_scale: default ``D ** -0.5``.
    causal: row i sees keys up to its own, which is i + len_k - len_q.
    qv: refused unless None.
    q_descale, k_descale, v_descale: of e4m3, float32 ``[B, Hkv]``.
    window_size: keys to the left and right of a row's own, both inclusive; below 0 = unlimited. Causal calls have
        nothing to the right, whatever it says.
    attention_chunk: above 0, a row sees only keys of its own chunk of so many, causal or not, with a window or not.
    softcap: scores become ``softcap * tanh(score / softcap)``; 0 = off.
    num_splits, pack_gqa, deterministic, sm_margin: no effect; the bits never depend on them.
    return_attn_probs: return ``(out, lse)``: the log-sum-exp, float32 ``[B, Hq, Sq]`` or ``[Hq, total_q]``, -inf for a
        row that sees no key.

What comes after ``*`` in a signature is our own:

    dropout_p: 0.0; anything else is refused.
    skip_softmax_threshold, stats: as in :class:`skimattn.Params`.

:func:`flash_attn_with_kvcache` describes its arguments itself.

``out`` is shaped as q with Dv columns, bf16 where q is e4m3. Every function raises what :func:`skimattn.launch` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._call.checks import integer, require_tensor
from ..errors import expected
from ..params import UNLIMITED
from ._kvcache import flash_attn_with_kvcache
from ._shared import Length, Result, Threshold, absent, cap, compute, dense, hint, refuse, window_arguments

__all__ = ["flash_attn_func", "flash_attn_qkvpacked_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]


def __getattr__(name: str) -> object:
    """Say of a name of flash-attn's that is not here why."""
    raise AttributeError(absent(__name__, name))


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    window_size: Sequence[int] = UNLIMITED,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    *,
    dropout_p: float = 0.0,
    skip_softmax_threshold: Threshold = None,
    stats: torch.Tensor | None = None,
) -> Result:
    """Attention over requests of one length: q ``[B, Sq, Hq, D]``, k ``[B, Sk, Hkv, D]``, v ``[B, Sk, Hkv, Dv]``."""
    refuse(dropout_p, qv=qv)
    out, lse = compute(
        {"q": q, "k": k, "v": v},
        window_arguments(causal, window_size, attention_chunk),
        with_lse=return_attn_probs,
        softmax_scale=softmax_scale,
        softcap=cap(softcap),
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        skip_softmax_threshold=skip_softmax_threshold,
        stats=stats,
    )
    return out if lse is None else (out, lse)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    max_seqlen_q: Length,
    max_seqlen_k: Length,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    window_size: Sequence[int] = UNLIMITED,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    *,
    dropout_p: float = 0.0,
    skip_softmax_threshold: Threshold = None,
    stats: torch.Tensor | None = None,
) -> Result:
    """Attention over requests of different lengths, q and k each ragged or batched.

    Either is ``[total, heads, D]`` with its ``cu_seqlens_*``, or as in :func:`flash_attn_func` without. v is as k.
    """
    refuse(dropout_p, qv=qv)
    out, lse = compute(
        {"q": q, "k": k, "v": v},
        window_arguments(causal, window_size, attention_chunk),
        with_lse=return_attn_probs,
        cu_seqlens_q=dense(cu_seqlens_q),
        cu_seqlens_k=dense(cu_seqlens_k),
        max_seqlen_q=hint(max_seqlen_q, cu_seqlens_q, seqused_q),
        max_seqlen_k=hint(max_seqlen_k, cu_seqlens_k, seqused_k),
        seqused_q=dense(seqused_q),
        seqused_k=dense(seqused_k),
        softmax_scale=softmax_scale,
        softcap=cap(softcap),
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        skip_softmax_threshold=skip_softmax_threshold,
        stats=stats,
    )
    return out if lse is None else (out, lse)


def flash_attn_qkvpacked_func(
    qkv: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    window_size: Sequence[int] = UNLIMITED,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    *,
    dropout_p: float = 0.0,
    skip_softmax_threshold: Threshold = None,
    stats: torch.Tensor | None = None,
) -> Result:
    """Attention of ``qkv`` ``[B, S, 3, H, D]``, or ``[B, S, Hq + 2 * Hkv, D]`` with ``num_heads_q`` = Hq; no copy."""
    q, k, v = _unpacked(require_tensor("qkv", qkv), num_heads_q)
    return flash_attn_func(
        q,
        k,
        v,
        softmax_scale,
        causal,
        None,
        q_descale,
        k_descale,
        v_descale,
        window_size,
        attention_chunk,
        softcap,
        deterministic=deterministic,
        sm_margin=sm_margin,
        return_attn_probs=return_attn_probs,
        dropout_p=dropout_p,
        skip_softmax_threshold=skip_softmax_threshold,
        stats=stats,
    )


def _unpacked(qkv: torch.Tensor, num_heads_q: int | None) -> tuple[torch.Tensor, ...]:
    """Views of queries, keys and values."""
    if qkv.dim() == 5 and qkv.shape[2] == 3:
        return qkv.unbind(2)
    if qkv.dim() != 4:
        raise expected("qkv", "shape [B, S, 3, H, D] or [B, S, Hq + 2 * Hkv, D]", list(qkv.shape))
    heads_q = integer("num_heads_q", num_heads_q, 1)
    heads_kv, odd = divmod(qkv.shape[2] - heads_q, 2)
    if odd or heads_kv < 1:
        raise expected("num_heads_q", f"Hq of {qkv.shape[2]} = Hq + 2 * Hkv heads", heads_q)
    return torch.split(qkv, [heads_q, heads_kv, heads_kv], dim=2)
