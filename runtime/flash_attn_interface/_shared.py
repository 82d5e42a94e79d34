"""What both faces share: windows as flash-attn means them, tensors as kernels read them, refusals, the call itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.compiler import is_compiling

from .._call.checks import TMA_BYTES, describe, integer, require_tensor
from ..api import attention
from ..errors import expected

LOWEST = -(1 << 31)  # that a side of a window may be: flash-attn has meanings for what is below 0
Threshold = float | torch.Tensor | None
Length = int | torch.Tensor | None
Result = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
_ABSENT_NAMES = {
    "flash_attn_combine": "skimattn.merge_states merges states, whose log-sum-exps are [..., H]",
    "flash_attn_with_kvcache": "FlashAttention-3 has it (flash_attn_varlen_func here takes a page_table)",
    "get_scheduler_metadata": "a launch needs no metadata",
}
# What flash-attn has and no kernel here computes. Each is refused by name unless it is None.
_ABSENT = {
    "aux_scalars": "there are no functions of scores or masks",
    "aux_tensors": "there are no functions of scores or masks",
    "block_sparse_tensors": "there are no lists of key blocks",
    "block_sparse_tensors_bwd": "there is no backward pass",
    "gather_kv_indices": "keys are not gathered by index",
    "mask_mod": "there are no functions of masks (skimattn.Params takes a custom_mask)",
    "qv": "queries do not meet the values (MLA in latent form)",
    "score_mod": "there are no functions of scores (skimattn.Params takes softcap and alibi_slopes)",
    "score_mod_bwd": "there is no backward pass",
}


def absent(module: str, name: str) -> str:
    """Why ``module``, which stands for one of flash-attn's, has no ``name``."""
    reason = _ABSENT_NAMES.get(name)
    return f"module {module!r} has no {name!r}" + (f": {reason}" if reason else "")


def refuse(dropout_p: float, **arguments: object) -> None:
    """Refuse dropout, and every argument of flash-attn's that no kernel computes, unless it is None or empty."""
    if dropout_p != 0:
        raise expected("dropout_p", "0.0, since there is no dropout", repr(dropout_p))
    for name, value in arguments.items():
        if value is not None and not (isinstance(value, (tuple, list)) and len(value) == 0):
            got = describe(value) if isinstance(value, torch.Tensor) else type(value).__name__
            raise expected(name, f"None, since {_ABSENT[name]}", got)


def sides(window_size: object) -> Sequence[Any]:
    """``window_size`` as (left, right)."""
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise expected("window_size", "a pair (left, right), a tuple or a list", repr(window_size))
    return window_size


def mask_arguments(left: int, right: int, chunk: int = 0) -> dict[str, Any]:
    """The arguments of :class:`~skimattn.Params` for a window, -1 = unlimited, inside chunks of ``chunk`` keys."""
    if chunk:
        if (left, right) == (-1, 0):  # causal inside the chunk, which a chunked mask is without a window
            return {"mask": "chunked", "chunk_size": chunk}
        reach = chunk - 1  # no key of the chunk is farther away
        left, right = (reach if side < 0 else min(side, reach) for side in (left, right))
        return {"mask": "chunked", "chunk_size": chunk, "window_size": (left, right)}
    if (left, right) == (-1, -1):
        return {"mask": "full"}
    if (left, right) == (-1, 0):
        return {"mask": "causal"}
    return {"mask": "window", "window_size": (left, right)}


def window_arguments(causal: bool, window_size: object, attention_chunk: object) -> dict[str, Any]:
    """The mask that FlashAttention-3 means, as arguments of :class:`~skimattn.Params`."""
    left, right = (max(-1, integer("window_size", side, LOWEST)) for side in sides(window_size))
    return mask_arguments(left, 0 if causal else right, integer("attention_chunk", attention_chunk, 0))


def cap(softcap: float | None) -> float:
    """``softcap`` as :class:`~skimattn.Params` takes it; flash-attn has everything that is not above 0 mean off."""
    if softcap is None or (isinstance(softcap, (int, float)) and softcap <= 0):
        return 0.0
    return softcap


def readable(tensor: torch.Tensor) -> torch.Tensor:
    """q, k or v as kernels read them: a copy where TMA cannot describe the address or the strides."""
    # Note: a tensor has no address while a call is traced; one that is not aligned is refused when it runs.
    aligned = is_compiling() or tensor.data_ptr() % TMA_BYTES == 0
    if aligned and (tensor.is_contiguous() or _has_tma_strides(tensor)):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _has_tma_strides(tensor: torch.Tensor) -> bool:
    *outer, columns = zip(tensor.shape, tensor.stride(), strict=True)
    if columns[0] > 1 and columns[1] != 1:
        return False
    return all(size <= 1 or stride * tensor.element_size() % TMA_BYTES == 0 for size, stride in outer)


def dense(value: Any) -> Any:
    """A vector of lengths or sinks, or a page table, without gaps; what is no tensor is refused later, by its name."""
    return value.contiguous() if isinstance(value, torch.Tensor) and value.layout is torch.strided else value


def hint(max_seqlen: Length, cu_seqlens: torch.Tensor | None, seqused: torch.Tensor | None) -> Length:
    """``max_seqlen_*`` where it bounds what ``cu_seqlens_*`` says, as ours does.

    flash-attn's means what is in use if that is given, and nothing if a shape says the length. It may be a tensor
    there, such as ``lengths.max()``; a hint is not worth waiting for the GPU, so this one is left out.
    """
    if cu_seqlens is None or seqused is not None or isinstance(max_seqlen, torch.Tensor):
        return None
    return max_seqlen


def compute(
    tensors: Mapping[str, object], mask: Mapping[str, Any], *, with_lse: bool, **arguments: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Launch a call.

    Args:
        tensors: q, k and v, which are copied where kernels cannot read them as they are.
        mask: from :func:`mask_arguments`.
        with_lse: whether the log-sum-exp is wanted.
        arguments: others of :class:`~skimattn.Params`; those that are None are left at their defaults.

    Returns:
        ``out``, and the log-sum-exp over the kept keys as ``[B, Hq, Sq]`` or ``[Hq, total_q]``, or None.
    """
    checked = [require_tensor(name, tensor) for name, tensor in tensors.items()]
    q, k, v = map(readable, checked)
    lse = None
    if with_lse and q.dim() >= 3:  # other ranks are refused
        lse = q.new_empty((*q.shape[:-3], q.shape[-2], q.shape[-3]), dtype=torch.float32)
    given = {name: value for name, value in arguments.items() if value is not None}
    out = attention(q, k, v, **mask, **given, lse=None if lse is None else lse.transpose(-1, -2))
    assert isinstance(out, torch.Tensor)  # return_lse is not set
    return out, lse
