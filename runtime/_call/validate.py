"""Turns a call into a ``Problem``, or refuses it with a reason. Launches and writes nothing.

Values of device tensors (lengths, page numbers, thresholds) are never read back, so they are checked only where they
lie on the CPU. ``max_seqlen_q`` and ``max_seqlen_k`` are believed for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from skimattn.codegen.features import BY_NAME

from ..errors import ArgumentError, expected
from ..params import Params
from . import options, outputs
from .checks import (
    MAX_DIM,
    TMA_BYTES,
    describe,
    integer,
    one_of,
    require_contiguous,
    require_device,
    require_dtype,
    require_near,
    require_shape,
    require_tensor,
    require_tma_strides,
)
from .dtypes import DTYPES, default_out_dtype
from .problem import Problem

PAGE_SIZES = range(16, 257, 16)


@dataclass(frozen=True)
class _Sizes:
    batch: int
    heads_kv: int
    keys: int
    page_size: int
    len_q: int
    len_k: int


def validate(params: Params) -> Problem:
    """The call in plain numbers; :class:`~skimattn.errors.ArgumentError` if any argument is not acceptable."""
    if not isinstance(params, Params):
        raise expected("params", "a skimattn.Params", type(params).__name__)
    q, k, v = (require_tensor(name, getattr(params, name)) for name in "qkv")
    _check_types(q, k, v)
    ragged = _is_ragged(params, q)
    _check_ranks(params, ragged, k, v)
    sizes = _sizes(params, ragged)
    heads_q, head_dim, head_dim_v = q.shape[-2], q.shape[-1], v.shape[-1]
    _check_heads(heads_q, sizes.heads_kv)
    _check_columns(q, k, v)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        require_tma_strides(name, tensor)
    window, chunk_size = options.check_mask(params)
    threshold = options.check_threshold(params, q.device, sizes.batch, heads_q)
    problem = Problem(
        params=params,
        device=q.device,
        dtype=DTYPES[q.dtype],
        out_dtype=_out_dtype(params),
        batch=sizes.batch,
        heads_q=heads_q,
        heads_kv=sizes.heads_kv,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        ragged=ragged,
        rows=q.shape[-3],
        keys=sizes.keys,
        len_q=sizes.len_q,
        len_k=sizes.len_k,
        page_size=sizes.page_size,
        mask=options.mask_name(params),
        window=window,
        chunk_size=chunk_size,
        softmax_scale=options.softmax_scale(params, head_dim),
        softcap=options.softcap(params),
        skip=options.skip_kind(params),
        threshold=threshold,
    )
    options.check_head_vectors(problem)
    options.check_descales(problem)
    options.check_custom_mask(problem)
    outputs.check_outputs(problem)
    check_addresses(params)
    if q.device.type == "cpu":
        _check_values(problem)
    return problem


def _out_dtype(params: Params) -> str:
    """The output's dtype: that of the tensor given, which is checked later, or of the one that will be made."""
    given = params.out.dtype if isinstance(params.out, torch.Tensor) else None
    return DTYPES.get(given or default_out_dtype(params.q.dtype), "")


def check_addresses(params: Params) -> None:
    """What depends on where the tensors lie rather than on their shapes: alignment and overlap."""
    options.check_alignment(params)
    outputs.check_overlap(params)


def _check_types(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if q.device.type not in ("cpu", "cuda"):
        raise expected("q", "a tensor on cuda or cpu", q.device)
    require_dtype("q", q, *DTYPES)
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise expected(name, f"dtype {q.dtype}, like q", tensor.dtype)
        require_device(name, tensor, q.device)


def _is_ragged(params: Params, q: torch.Tensor) -> bool:
    if q.dim() not in (3, 4):
        raise expected("q", "rank 4 [B, Sq, Hq, D] or rank 3 [total_q, Hq, D]", list(q.shape))
    if q.dim() == 3 and params.cu_seqlens_q is None:
        raise expected("cu_seqlens_q", "int32 [B + 1], since q has rank 3 (a ragged batch)", None)
    if q.dim() == 4 and params.cu_seqlens_q is not None:
        raise expected("cu_seqlens_q", "None, since q has rank 4 (no ragged batch)", "a tensor")
    return q.dim() == 3


def _check_ranks(params: Params, ragged: bool, k: torch.Tensor, v: torch.Tensor) -> None:
    one_of("kv_layout", params.kv_layout, ("NHD", "HND"))
    if params.page_table is not None:
        wanted, rank = "rank 4, pages of keys, since page_table is given", 4
        if params.cu_seqlens_k is not None:
            raise expected("cu_seqlens_k", "None with page_table (use seqused_k for the lengths)", "a tensor")
    elif params.kv_layout != "NHD":
        raise expected("kv_layout", "'NHD' without page_table", repr(params.kv_layout))
    elif ragged:
        wanted, rank = "rank 3 [total_k, Hkv, D], since q is ragged and there is no page_table", 3
    else:
        wanted, rank = "rank 4 [B, Sk, Hkv, D], like q", 4
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dim() != rank:
            raise expected(name, wanted, list(tensor.shape))
    if rank == 3 and params.cu_seqlens_k is None:
        raise expected("cu_seqlens_k", "int32 [B + 1], since k has rank 3 (a ragged batch)", None)
    if rank == 4 and params.cu_seqlens_k is not None:
        raise expected("cu_seqlens_k", "None, since k has rank 4 (no ragged batch)", "a tensor")
    if k.shape[:-1] != v.shape[:-1]:
        raise expected("v", f"{list(k.shape[:-1])} and its own columns, like k", list(v.shape))


def _check_heads(heads_q: int, heads_kv: int) -> None:
    if heads_q < 1:
        raise expected("q", "at least one head", heads_q)
    if heads_kv < 1:
        raise expected("k", "at least one head", heads_kv)
    if heads_q % heads_kv:
        raise expected("q", f"a number of heads that is a multiple of k's {heads_kv}", heads_q)


def _check_columns(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    limit = max(int(value) for value in BY_NAME["head_dim"].values)
    step = TMA_BYTES // q.element_size()
    for name, tensor in (("q", q), ("v", v)):
        columns = tensor.shape[-1]
        if columns % step or not step <= columns <= limit:
            wanted = f"a head_dim (last dimension) that is a multiple of {step} from {step} to {limit}"
            raise expected(name, wanted, columns)
    if k.shape[-1] != q.shape[-1]:
        raise expected("k", f"head_dim {q.shape[-1]}, like q", k.shape[-1])


def _sizes(params: Params, ragged: bool) -> _Sizes:
    q, k = params.q, params.k
    heads_kv, keys = k.shape[-2], k.shape[-3]
    batch, len_q = q.shape[0], q.shape[-3]
    if ragged:
        batch = _lengths("cu_seqlens_q", params.cu_seqlens_q, q.device).shape[0] - 1
        if batch < 0:
            raise expected("cu_seqlens_q", "shape [B + 1]", [0])
    page_size, len_k = 0, keys
    if params.page_table is not None:
        if params.kv_layout == "HND":
            heads_kv, keys = keys, heads_kv
        page_size, len_k = keys, _check_pages(params, batch, keys)
    elif ragged:
        cu_seqlens_k = _lengths("cu_seqlens_k", params.cu_seqlens_k, q.device)
        require_shape("cu_seqlens_k", cu_seqlens_k, [batch + 1])
    elif k.shape[0] != batch:
        raise expected("k", f"{batch} requests, like q", k.shape[0])
    if params.seqused_k is not None:
        require_shape("seqused_k", _lengths("seqused_k", params.seqused_k, q.device), [batch])
    if params.max_seqlen_q is not None:
        len_q = _hint("max_seqlen_q", params.max_seqlen_q, len_q, known=not ragged)
    if params.max_seqlen_k is not None:
        given = params.cu_seqlens_k is not None or params.seqused_k is not None
        len_k = _hint("max_seqlen_k", params.max_seqlen_k, len_k, known=not given)
    return _Sizes(batch, heads_kv, keys, page_size, len_q, len_k)


def _hint(name: str, value: object, most: int, *, known: bool) -> int:
    """The longest request, as the caller says; ``known`` = all have the full length, so a smaller number is wrong."""
    hint = integer(name, value, 0, most)
    if known and hint != most:
        raise expected(name, f"{most} or None, since every request has that length", hint)
    return hint


def _lengths(name: str, value: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    tensor = require_tensor(name, value)
    require_dtype(name, tensor, torch.int32)
    require_device(name, tensor, device)
    if tensor.dim() != 1:
        raise expected(name, "rank 1", list(tensor.shape))
    require_contiguous(name, tensor)
    return tensor


def _check_pages(params: Params, batch: int, page_size: int) -> int:
    """The page table's form; returns how many keys a request can have."""
    table = require_tensor("page_table", params.page_table)
    require_dtype("page_table", table, torch.int32)
    require_device("page_table", table, params.q.device)
    require_shape("page_table", table, [batch, "max_pages"])
    if table.shape[1] > 1 and table.stride(1) != 1:
        raise expected("page_table", "a contiguous last dimension (stride 1)", f"strides {list(table.stride())}")
    require_near("page_table", table)
    if page_size not in PAGE_SIZES:
        name = "k" if params.kv_layout == "NHD" else "k (HND)"
        raise expected(name, "a page size that is a multiple of 16 from 16 to 256", page_size)
    if table.shape[1] * page_size >= MAX_DIM:
        raise expected("page_table", f"room for fewer than 2**30 keys in pages of {page_size}", list(table.shape))
    return int(table.shape[1]) * page_size


def _check_values(problem: Problem) -> None:
    """What only the contents of CPU tensors tell."""
    params = problem.params
    _check_offsets("cu_seqlens_q", params.cu_seqlens_q, problem.rows, problem.len_q, "max_seqlen_q")
    _check_offsets("cu_seqlens_k", params.cu_seqlens_k, problem.keys, problem.len_k, "max_seqlen_k")
    limits = torch.full((problem.batch,), problem.len_k)
    if params.cu_seqlens_k is not None:
        limits = params.cu_seqlens_k.diff()
    used = params.seqused_k
    if used is not None and bool(((used < 0) | (used > limits)).any()):
        raise expected("seqused_k", f"lengths from 0 to {limits.tolist()}", used.tolist())
    if params.page_table is not None:
        _check_page_numbers(problem, limits if used is None else used)


def _check_offsets(name: str, offsets: torch.Tensor | None, total: int, longest: int, hint: str) -> None:
    if offsets is None:
        return
    values = offsets.tolist()
    if values[0] != 0 or values[-1] != total:
        raise expected(name, f"offsets from 0 to {total}, the number of rows", f"{values[0]} to {values[-1]}")
    lengths = [end - start for start, end in pairwise(values)]
    if any(length < 0 for length in lengths):
        raise expected(name, "offsets that never fall", values)
    if max(lengths, default=0) > longest:
        raise expected(hint, f"at least {max(lengths)}, the longest request in {name}", longest)


def _check_page_numbers(problem: Problem, lengths: torch.Tensor) -> None:
    params = problem.params
    assert params.page_table is not None
    pages = params.k.shape[0]
    for batch, length in enumerate(lengths.tolist()):
        used = params.page_table[batch, : -(-length // problem.page_size)]
        if bool(((used < 0) | (used >= pages)).any()):
            raise ArgumentError(
                f"page_table: expected page numbers from 0 to {pages - 1} (got {used.tolist()} for request {batch}; "
                f"k is {describe(params.k)})"
            )
