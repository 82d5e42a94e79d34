"""What a launch consists of, computed without CUDA: kernels, with tensor maps, parameter values and a grid for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tile import ELEMENT_BYTES, panel_columns

from .._call.arguments import POINTERS
from .._call.checks import TMA_BYTES
from .._call.problem import Problem
from .buffers import Buffers

L2_KV_BYTES = 32 << 20  # keys and values that stay in L2 while a section of heads is worked on
KEPT_MAPS = 1024  # forms of maps that are kept, with their encoding: pools never change, k and v look the same
LEAST_BOX_ROWS = 16  # of one copy from what is not paged; pages have as few
WARP_THREADS = 32  # each of which knows one request of a ragged batch
LOG2E = math.log2(math.e)
_NEW = ("out", "lse", "custom_mask")  # arguments whose tensor a launch may make itself
_POINTER_OF = {name: field for field, name in POINTERS.items()}

Value = int | float


@dataclass(slots=True, eq=False)
class MapForm:
    """A TMA tensor map without its address, innermost dimension first; 128-byte swizzle, zero fill outside.

    ``dims`` are (columns, rows, heads, requests or pages), ``strides`` the bytes of the last three, ``box`` is what
    one copy takes of each dimension. ``encoded`` is kept by whoever encodes it.
    """

    dtype: str
    dims: tuple[int, int, int, int]
    strides: tuple[int, int, int]
    box: tuple[int, int, int, int]
    encoded: bytes = b""


class TensorMapSpec(NamedTuple):
    """A tensor map: its address and all the rest."""

    address: int
    form: MapForm

    @property
    def dtype(self) -> str:
        """Of the elements."""
        return self.form.dtype

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """Sizes."""
        return self.form.dims

    @property
    def strides(self) -> tuple[int, int, int]:
        """Bytes from one index to the next, of all dimensions but the first."""
        return self.form.strides

    @property
    def box(self) -> tuple[int, int, int, int]:
        """What one copy takes."""
        return self.form.box


@dataclass(slots=True, eq=False)
class KernelLaunch:
    """One kernel of a launch: its tensor maps, all other parameter fields that are not zero, and its grid."""

    kernel: Kernel
    maps: dict[str, TensorMapSpec]
    scalars: dict[str, Value]
    grid: int


@dataclass(slots=True, eq=False)
class LaunchPlan:
    """Everything one launch needs: its kernels in the order of the stream. Prefill has one."""

    kernels: tuple[KernelLaunch, ...]


def make_plan(
    problem: Problem, kernel: Kernel, buffers: Buffers, *, sm_count: int, work_counter_address: int
) -> LaunchPlan:
    """The plan of one launch.

    Args:
        problem: a validated call with at least one row.
        kernel: the row of the kernel that computes it.
        buffers: outputs and packed custom mask.
        sm_count: multiprocessors of the device; the persistent grid has at most one CTA for each.
        work_counter_address: device address of a uint32 that is zero while no launch uses it.
    """
    scalars: dict[str, Value] = {"work_counter": work_counter_address}
    _add_pointers(scalars, problem, buffers)
    _add_strides(scalars, problem, buffers)
    _add_strides_of_options(scalars, problem, buffers)
    _add_sizes(scalars, problem, kernel)
    _add_numbers(scalars, problem)
    grid = min(sm_count, work_items(problem, kernel))
    return LaunchPlan((KernelLaunch(kernel, _maps(problem, kernel, buffers), scalars, grid),))


def work_items(problem: Problem, kernel: Kernel) -> int:
    """Query tiles over all heads and requests; ragged batches: an upper bound that needs no lengths."""
    if problem.ragged:
        return (-(-problem.rows // kernel.tile_m) + problem.batch) * problem.heads_q
    return -(-problem.rows // kernel.tile_m) * problem.heads_q * problem.batch


def page_box_rows(page_size: int, tile_n: int) -> int:
    """Rows of one copy from a page: the largest power of two that divides the page, at most a tile."""
    return min(page_size & -page_size, tile_n)


def kv_box_rows(len_k: int, tile_n: int) -> int:
    """Rows of one copy without pages: a tile, or less where no request has as many keys, and others lie behind them."""
    return min(tile_n, max(LEAST_BOX_ROWS, 1 << max(0, len_k - 1).bit_length()))


def sections(problem: Problem) -> tuple[int, int]:
    """What shares L2 in the work order: (request, kv head) pairs and 0, or kv heads and requests of a ragged batch."""
    batch, heads = problem.batch, problem.heads_kv
    keys = batch * problem.len_k if problem.params.cu_seqlens_k is None else problem.keys
    if problem.form.paged:
        keys = min(keys, problem.params.k.shape[0] * problem.page_size)
    # Requests of one head, of the mean length: how they differ is not known here.
    bytes_per_key = (problem.head_dim + problem.head_dim_v) * ELEMENT_BYTES[problem.dtype]
    fitting = L2_KV_BYTES * batch // max(1, keys * bytes_per_key)
    if not problem.varlen_q:
        return max(1, min(fitting, batch * heads)), 0
    most = max(1, min(fitting, batch, WARP_THREADS))
    requests = -(-batch // -(-batch // most))  # the same number of sections, the last of which is not small
    return max(1, min(fitting // requests, heads)), requests


def argument(problem: Problem, buffers: Buffers, name: str) -> torch.Tensor | None:
    """The tensor behind an argument's name, as the kernel sees it; None where there is none."""
    value = getattr(buffers if name in _NEW else problem.params, name)
    return value if isinstance(value, torch.Tensor) else None


def _add_pointers(scalars: dict[str, Value], problem: Problem, buffers: Buffers) -> None:
    for name in (*problem.form.given[3:], *_NEW):  # q, k and v, which come first, are reached through maps
        field = _POINTER_OF.get(name)
        tensor = argument(problem, buffers, name) if field else None
        if field and tensor is not None:
            scalars[field] = tensor.data_ptr()


def _add_strides(scalars: dict[str, Value], problem: Problem, buffers: Buffers) -> None:
    """Strides in elements of [rows, heads, ...] or [batch, rows, heads, ...]."""
    for name, tensor in (("out", buffers.out), ("lse", buffers.lse)):
        if tensor is None:
            continue
        strides = tensor.stride()
        batch, row, head = (0, *strides[:2]) if problem.ragged else strides[:3]
        scalars[f"{name}_stride_row"], scalars[f"{name}_stride_head"] = row, head
        scalars[f"{name}_stride_batch"] = batch


def _add_strides_of_options(scalars: dict[str, Value], problem: Problem, buffers: Buffers) -> None:
    """Those of tensors that few calls have."""
    params, custom = problem.params, buffers.custom_mask
    if custom is not None:
        strides, shared = custom.stride(), 3 if problem.ragged else 4
        scalars["custom_stride_row"] = strides[-2]
        scalars["custom_stride_head"] = strides[-3] if len(strides) == shared else 0
        scalars["custom_stride_batch"] = strides[0] if not problem.ragged and len(strides) > 2 else 0
    if params.skip_map is not None:
        for name, stride in zip(("batch", "head", "group"), params.skip_map.stride(), strict=False):
            scalars[f"skip_map_stride_{name}"] = stride
    if isinstance(params.skip_softmax_threshold, torch.Tensor):
        steps = params.skip_softmax_threshold.stride()
        scalars["threshold_stride_batch"], scalars["threshold_stride_head"] = (*steps, 0)[:2]
    for name in ("q_descale", "k_descale", "v_descale"):
        value = getattr(params, name)
        if value is not None and value.dim() == 2:
            scalars[f"{name}_stride_batch"], scalars[f"{name}_stride_head"] = value.stride()
    if params.stats is not None:
        pairs = (*(stride // 2 for stride in params.stats.stride()[:-1]), 0, 0)
        scalars["stats_stride_batch"], scalars["stats_stride_head"] = pairs[:2]


def _add_sizes(scalars: dict[str, Value], problem: Problem, kernel: Kernel) -> None:
    form, len_k = problem.form, problem.len_k
    scalars["batch"] = problem.batch
    scalars["heads_q"] = problem.heads_q
    scalars["heads_kv"] = problem.heads_kv
    scalars["len_q"] = problem.len_q
    scalars["len_k"] = len_k
    scalars["head_dim_v"] = problem.head_dim_v
    if form.paged:
        assert problem.params.page_table is not None
        scalars["page_size"] = problem.page_size
        scalars["page_box_rows"] = page_box_rows(problem.page_size, kernel.tile_n)
        scalars["page_table_stride"] = problem.params.page_table.stride(0)
    else:
        scalars["kv_box_rows"] = kv_box_rows(len_k, kernel.tile_n)
    # A window over all keys shows no less than a wider one, and keeps what kernels add up far from 32 bits.
    scalars["window_left"] = min(form.window[0], len_k)
    scalars["window_right"] = form.window[1]
    scalars["chunk_size"] = form.chunk_size
    scalars["heads_in_l2"], scalars["requests_in_l2"] = sections(problem)


def _add_numbers(scalars: dict[str, Value], problem: Problem) -> None:
    """Scales of the softmax in base 2. Raw scores are q.k, or tanh(q.k * score_scale) where capped."""
    scale, cap = problem.softmax_scale, problem.softcap
    unit = cap if cap > 0 else scale
    scalars["threshold_value"] = problem.threshold
    scalars["scale_log2"] = unit * LOG2E
    scalars["score_scale"] = scale / cap if cap > 0 else 0.0
    scalars["bias_scale"] = 1 / unit if problem.form.alibi else 0.0


def _maps(problem: Problem, kernel: Kernel, buffers: Buffers) -> dict[str, TensorMapSpec]:
    params, paged = problem.params, problem.form.paged
    rows_k = page_box_rows(problem.page_size, kernel.tile_n) if paged else kv_box_rows(problem.len_k, kernel.tile_n)
    hnd = paged and params.kv_layout == "HND"
    dtype, out_dtype, rows_q = kernel.dtype, kernel.out_dtype, kernel.group_rows
    q, k, v, out = params.q, params.k, params.v, buffers.out
    # Note: a map cannot be empty. Nothing is ever loaded from an empty tensor, so any address serves.
    fallback = q.data_ptr()
    return {
        "tma_q": TensorMapSpec(fallback, map_form(q.shape, q.stride(), dtype, rows_q)),
        "tma_k": TensorMapSpec(k.data_ptr() or fallback, map_form(k.shape, k.stride(), dtype, rows_k, hnd)),
        "tma_v": TensorMapSpec(v.data_ptr() or fallback, map_form(v.shape, v.stride(), dtype, rows_k, hnd)),
        "tma_o": TensorMapSpec(out.data_ptr(), map_form(out.shape, out.stride(), out_dtype, rows_q)),
    }


@lru_cache(KEPT_MAPS)
def map_form(shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, box_rows: int, hnd: bool = False) -> MapForm:
    """The map over a tensor ``[rows, heads, columns]``, ``[outer, rows, heads, columns]`` or, with ``hnd``,
    ``[outer, heads, rows, columns]``; any legal stride where a dimension has only one index.
    """
    if len(shape) == 3:
        (rows, heads, columns), outer, (row, head, _), request = shape, 1, strides, 0
    elif hnd:
        (outer, heads, rows, columns), (request, head, row, _) = shape, strides
    else:
        (outer, rows, heads, columns), (request, row, head, _) = shape, strides
    size = ELEMENT_BYTES[dtype]
    legal = max(TMA_BYTES, columns * size)
    pairs = ((rows, row), (heads, head), (outer, request))
    steps = [stride * size if count > 1 else legal for count, stride in pairs]
    return MapForm(
        dtype,
        (columns, rows or 1, heads or 1, outer or 1),
        (steps[0], steps[1], steps[2]),
        (panel_columns(dtype), box_rows, 1, 1),
    )
