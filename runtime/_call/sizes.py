"""Checks the sizes and strides of a call whose form is known, and puts it into numbers. Runs for every new shape."""

from __future__ import annotations

from typing import NoReturn

import torch
from skimattn.codegen.matrix import HEAD_DIMS

from ..errors import expected
from ..params import Params
from . import latent, options
from .checks import (
    MAX_DIM,
    TMA_BYTES,
    integer,
    require_contiguous,
    require_near,
    require_shape,
    require_tma_strides,
)
from .dtypes import DTYPES
from .problem import Form, Problem

PAGE_SIZES = frozenset((1, 2, 4, 8, *range(16, 1025, 16)))
_COLUMN_STEPS = {name: TMA_BYTES // dtype.itemsize for dtype, name in DTYPES.items()}
_MAX_HEAD_DIM = max(dim for dims in HEAD_DIMS["prefill"] for dim in dims)


def check_sizes(form: Form, params: Params) -> Problem:
    """The call in plain numbers; :class:`~skimattn.errors.ArgumentError` if any size or number is not acceptable."""
    q, k, v = params.q, params.k, params.v
    is_latent = q.shape[-1] == latent.HEAD_DIM
    if v is None:
        if not is_latent:
            raise expected("v", f"a torch.Tensor, since head_dim is not {latent.HEAD_DIM} (MLA in latent form)", None)
        v = latent.values_of(params)
    shape_q, shape_k, shape_v = q.shape, k.shape, v.shape
    if shape_k[:-1] != shape_v[:-1]:
        raise expected("v", f"{list(shape_k[:-1])} and its own columns, like k", list(shape_v))
    batch, len_q, heads_q, head_dim = _sizes_of_q(form, params)
    heads_kv, keys = shape_k[-2], shape_k[-3]
    if form.paged and params.kv_layout == "HND":
        heads_kv, keys = keys, heads_kv
    page_size, len_k = (keys, _check_pages(params, batch, keys)) if form.paged else (0, keys)
    if params.cu_seqlens_k is not None:
        _check_lengths("cu_seqlens_k", params.cu_seqlens_k, batch + 1, "B + 1")
    elif not form.paged and shape_k[0] != batch:
        raise expected("k", f"{batch} requests, like {'cu_seqlens_q' if form.ragged else 'q'}", shape_k[0])
    for name, used in (("seqused_q", params.seqused_q), ("seqused_k", params.seqused_k)):
        if used is not None:
            _check_lengths(name, used, batch, "B")
    if params.max_seqlen_q is not None:
        given = form.ragged or params.seqused_q is not None
        len_q = _hint("max_seqlen_q", params.max_seqlen_q, len_q, known=not given)
    if params.max_seqlen_k is not None:
        given = params.cu_seqlens_k is not None or params.seqused_k is not None
        len_k = _hint("max_seqlen_k", params.max_seqlen_k, len_k, known=not given)
    if heads_q < 1 or heads_kv < 1 or heads_q % heads_kv:
        _refuse_heads(heads_q, heads_kv)
    head_dim_v, step = shape_v[-1], max(_COLUMN_STEPS[form.dtype], _COLUMN_STEPS.get(form.kv_dtype, 0))
    if is_latent:
        latent.check_sizes(params, heads_kv, len_q * heads_q)
    for name, columns in () if is_latent else (("q", head_dim), ("v", head_dim_v)):
        if columns % step or not step <= columns <= _MAX_HEAD_DIM:
            multiples = f"a multiple of {step} from {step} to {_MAX_HEAD_DIM}"
            wanted = f"a head_dim (last dimension) that is {multiples}, or {latent.HEAD_DIM} (MLA in latent form)"
            raise expected(name, wanted, columns)
    if shape_k[-1] != head_dim:
        raise expected("k", f"head_dim {head_dim}, like q", shape_k[-1])
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not tensor.is_contiguous() or tensor.numel() >= MAX_DIM:  # otherwise the columns decide
            require_tma_strides(name, tensor)
    scale = head_dim**-0.5 if form.softmax_scale is None else form.softmax_scale
    threshold = 0.0 if form.skip == "dense" else options.threshold_value(params)
    out_shape = (*shape_q[:-1], head_dim_v)
    # fmt: off
    problem = Problem(
        params, form, batch, heads_q, heads_kv, head_dim, head_dim_v, shape_q[-3], keys, len_q, len_k, page_size,
        scale, threshold, out_shape,
    )
    # fmt: on
    for check in form.checks:
        check(problem)
    return problem


def _sizes_of_q(form: Form, params: Params) -> tuple[int, int, int, int]:
    """Requests, the most rows of one, heads, columns."""
    shape = params.q.shape
    if not form.ragged:
        batch, len_q, heads_q, head_dim = shape
        return batch, len_q, heads_q, head_dim
    assert params.cu_seqlens_q is not None
    batch = params.cu_seqlens_q.shape[0] - 1 if params.cu_seqlens_q.dim() == 1 else -1
    if batch < 0:
        raise expected("cu_seqlens_q", "rank 1 [B + 1]", list(params.cu_seqlens_q.shape))
    require_contiguous("cu_seqlens_q", params.cu_seqlens_q)
    len_q, heads_q, head_dim = shape
    return batch, len_q, heads_q, head_dim


def _refuse_heads(heads_q: int, heads_kv: int) -> NoReturn:
    if heads_q < 1:
        raise expected("q", "at least one head", heads_q)
    if heads_kv < 1:
        raise expected("k", "at least one head", heads_kv)
    raise expected("q", f"a number of heads that is a multiple of k's {heads_kv}", heads_q)


def _hint(name: str, value: object, most: int, *, known: bool) -> int:
    """The longest request, as the caller says, cut to ``most``.

    ``known`` = all have the full length, so a smaller number is wrong.
    """
    hint = min(integer(name, value, 0), most)
    if known and hint != most:
        raise expected(name, f"at least {most} or None, since every request has that length", hint)
    return hint


def _check_lengths(name: str, value: torch.Tensor, count: int, label: str) -> None:
    if value.dim() != 1 or value.shape[0] != count:
        raise expected(name, f"shape [{count}] ({label})", list(value.shape))
    require_contiguous(name, value)


def _check_pages(params: Params, batch: int, page_size: int) -> int:
    """The page table's form; returns how many keys a request can have."""
    table = params.page_table
    assert table is not None
    require_shape("page_table", table, [batch, "max_pages"])
    if table.shape[1] > 1 and table.stride(1) != 1:
        raise expected("page_table", "a contiguous last dimension (stride 1)", f"strides {list(table.stride())}")
    require_near("page_table", table)
    if page_size not in PAGE_SIZES:
        name = "k" if params.kv_layout == "NHD" else "k (HND)"
        raise expected(name, "a page size of 1, 2, 4 or 8, or a multiple of 16 from 16 to 1024", page_size)
    if table.shape[1] * page_size >= MAX_DIM:
        raise expected("page_table", f"room for fewer than 2**30 keys in pages of {page_size}", list(table.shape))
    return table.shape[1] * page_size
