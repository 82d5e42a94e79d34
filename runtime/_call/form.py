"""Checks what a call's sizes, addresses and thresholds have no part in: types, devices, ranks, options.

What is looked at here is exactly what the form of a call holds (:class:`skimattn._launch.signature.Scan`), so a form
that was checked once need not be checked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..errors import expected
from ..params import Params
from . import options, outputs
from .arguments import ARGUMENTS, TENSORS
from .checks import one_of, require_device, require_dtype, require_tensor
from .dtypes import DTYPES, default_out_dtype, keys_dtypes, out_dtypes
from .problem import Form, Problem


def check_form(params: Params) -> Form:
    """The form of a call; :class:`~skimattn.errors.ArgumentError` if any argument is not acceptable in any size."""
    if not isinstance(params, Params):
        raise expected("params", "a skimattn.Params", type(params).__name__)
    q, k = (require_tensor(name, getattr(params, name)) for name in "qk")
    v = k if params.v is None else require_tensor("v", params.v)  # whether it may be left out, the sizes say
    _check_types(q, k, v)
    ragged = _is_ragged(params, q)
    _check_ranks(params, k, v)
    window, chunk_size = options.check_mask(params)
    skip = options.skip_kind(params)
    _check_options_of_tensors(params, skip)
    _check_tensors(params, q)
    return Form(
        device=q.device,
        dtype=DTYPES[q.dtype],
        kv_dtype="same" if k.dtype == q.dtype else DTYPES[k.dtype],
        out_dtype=DTYPES[default_out_dtype(q.dtype) if params.out is None else params.out.dtype],
        ragged=ragged,
        paged=params.page_table is not None,
        mask=options.mask_name(params),
        window=window,
        chunk_size=chunk_size,
        softmax_scale=options.softmax_scale(params),
        softcap=options.softcap(params),
        alibi=params.alibi_slopes is not None,
        skip=skip,
        given=tuple(name for name in TENSORS if isinstance(getattr(params, name), torch.Tensor)),
        checks=tuple(_checks_of_sizes(params)),
    )


def _check_types(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if q.device.type not in ("cpu", "cuda"):
        raise expected("q", "a tensor on cuda or cpu", q.device)
    require_dtype("q", q, *DTYPES)
    if k.dtype not in keys_dtypes(q.dtype):
        caches = [f", or a cache of {dtype}" for dtype in keys_dtypes(q.dtype)[1:]]
        raise expected("k", f"dtype {q.dtype}, like q{''.join(caches)}", k.dtype)
    if v.dtype != k.dtype:
        raise expected("v", f"dtype {k.dtype}, like k", v.dtype)
    for name, tensor in (("k", k), ("v", v)):
        require_device(name, tensor, q.device)


def _is_ragged(params: Params, q: torch.Tensor) -> bool:
    if q.dim() not in (3, 4):
        raise expected("q", "rank 4 [B, Sq, Hq, D] or rank 3 [total_q, Hq, D]", list(q.shape))
    if q.dim() == 3 and params.cu_seqlens_q is None:
        raise expected("cu_seqlens_q", "int32 [B + 1], since q has rank 3 (a ragged batch)", None)
    if q.dim() == 4 and params.cu_seqlens_q is not None:
        raise expected("cu_seqlens_q", "None, since q has rank 4 (no ragged batch)", "a tensor")
    return q.dim() == 3


def _check_ranks(params: Params, k: torch.Tensor, v: torch.Tensor) -> None:
    one_of("kv_layout", params.kv_layout, ("NHD", "HND"))
    if params.page_table is not None:
        if params.cu_seqlens_k is not None:
            raise expected("cu_seqlens_k", "None with page_table (use seqused_k for the lengths)", "a tensor")
        if k.dim() != 4:
            raise expected("k", "rank 4, pages of keys, since page_table is given", list(k.shape))
    elif params.kv_layout != "NHD":
        raise expected("kv_layout", "'NHD' without page_table", repr(params.kv_layout))
    elif k.dim() not in (3, 4):
        raise expected("k", "rank 4 [B, Sk, Hkv, D] or rank 3 [total_k, Hkv, D]", list(k.shape))
    if k.dim() == 3 and params.cu_seqlens_k is None:
        raise expected("cu_seqlens_k", "int32 [B + 1], since k has rank 3 (a ragged batch)", None)
    if k.dim() == 4 and params.cu_seqlens_k is not None:
        raise expected("cu_seqlens_k", "None, since k has rank 4 (no ragged batch)", "a tensor")
    if v.dim() != k.dim():
        raise expected("v", f"rank {k.dim()}, like k", list(v.shape))


def _check_options_of_tensors(params: Params, skip: str) -> None:
    """Tensors that other arguments forbid."""
    options.check_no_descales(params)
    outputs.check_wanted(params, skip)


def _check_tensors(params: Params, q: torch.Tensor) -> None:
    """Type and device of every other tensor, as the table of arguments says."""
    for name in TENSORS[3:]:
        value = getattr(params, name)
        if value is None or (name == "skip_softmax_threshold" and options.is_number(value)):
            continue
        tensor = require_tensor(name, value)
        require_dtype(name, tensor, *(ARGUMENTS[name].dtypes or out_dtypes(q.dtype)))
        require_device(name, tensor, q.device)


def _checks_of_sizes(params: Params) -> Iterator[Callable[[Problem], None]]:
    """What has to be checked of the sizes of the optional tensors that a call has."""
    if params.alibi_slopes is not None or params.sinks is not None:
        yield options.check_head_vectors
    if any(getattr(params, name) is not None for name in options.DESCALES):
        yield options.check_descales
    if params.custom_mask is not None:
        yield options.check_custom_mask
    if isinstance(params.skip_softmax_threshold, torch.Tensor):
        yield options.check_thresholds
    for name, check in outputs.CHECKS.items():
        if getattr(params, name) is not None:
            yield check
