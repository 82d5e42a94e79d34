"""What a launch consists of, computed without CUDA: tensor maps, parameter values and the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tile import ELEMENT_BYTES, panel_columns

from .._call.checks import TMA_BYTES
from .._call.problem import Problem
from .buffers import Buffers

L2_KV_BYTES = 32 << 20  # keys and values that stay in L2 while a section of heads is worked on
LOG2E = math.log2(math.e)
BLOCK_TENSORS = {  # pointer fields of the parameter block and the argument each points to
    "lse": "lse",
    "out": "out",
    "stats": "stats",
    "skip_map": "skip_map",
    "threshold": "skip_softmax_threshold",
    "sinks": "sinks",
    "alibi_slopes": "alibi_slopes",
    "q_descale": "q_descale",
    "k_descale": "k_descale",
    "v_descale": "v_descale",
    "custom_mask": "custom_mask",
    "cu_seqlens_q": "cu_seqlens_q",
    "cu_seqlens_k": "cu_seqlens_k",
    "seqused_k": "seqused_k",
    "page_table": "page_table",
}
MAP_TENSORS = {"tma_q": "q", "tma_k": "k", "tma_v": "v", "tma_o": "out"}


@dataclass(frozen=True)
class TensorMapSpec:
    """A 4-D TMA tensor map, innermost dimension first; 128-byte swizzle, zero fill outside.

    ``dims`` are (columns, rows, heads, requests or pages), ``strides`` the bytes of the last three, ``box`` is
    (columns, rows).
    """

    address: int
    dtype: str
    dims: tuple[int, int, int, int]
    strides: tuple[int, int, int]
    box: tuple[int, int]


@dataclass(frozen=True)
class LaunchPlan:
    """Everything one launch needs: the kernel, its tensor maps, all other parameter fields, and the grid."""

    kernel: Kernel
    maps: dict[str, TensorMapSpec]
    scalars: dict[str, int | float]
    grid: int


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
    scalars: dict[str, int | float] = {"work_counter": work_counter_address}
    scalars.update(_pointers(problem, buffers))
    scalars.update(_strides(problem, buffers))
    scalars.update(_sizes(problem, kernel))
    scalars.update(_numbers(problem))
    return LaunchPlan(kernel, _maps(problem, kernel, buffers), scalars, min(sm_count, work_items(problem, kernel)))


def work_items(problem: Problem, kernel: Kernel) -> int:
    """Query tiles over all heads and requests; ragged batches: an upper bound that needs no lengths."""
    if problem.ragged:
        return (-(-problem.rows // kernel.tile_m) + problem.batch) * problem.heads_q
    return -(-problem.rows // kernel.tile_m) * problem.heads_q * problem.batch


def page_box_rows(page_size: int, tile_n: int) -> int:
    """Rows of one copy from a page: the largest power of two that divides the page, at most a tile."""
    return min(page_size & -page_size, tile_n)


def heads_in_l2(problem: Problem) -> int:
    """How many (request, kv head) pairs, or kv heads of a ragged batch, share L2 in the work order."""
    columns = problem.head_dim + problem.head_dim_v
    if not problem.ragged:
        keys, most = problem.len_k, problem.batch * problem.heads_kv
    elif problem.paged:
        pool = problem.params.k.shape[0] * problem.page_size
        keys, most = min(problem.batch * problem.len_k, pool), problem.heads_kv
    else:
        keys, most = problem.keys, problem.heads_kv
    return max(1, min(most, L2_KV_BYTES // max(1, keys * columns * ELEMENT_BYTES[problem.dtype])))


def argument(problem: Problem, buffers: Buffers, name: str) -> torch.Tensor | None:
    """The tensor behind an argument's name, as the kernel sees it; None where there is none."""
    value = getattr(buffers if name in ("out", "lse", "custom_mask") else problem.params, name)
    return value if isinstance(value, torch.Tensor) else None


def _pointers(problem: Problem, buffers: Buffers) -> dict[str, int]:
    tensors = {field: argument(problem, buffers, name) for field, name in BLOCK_TENSORS.items()}
    return {field: 0 if tensor is None else tensor.data_ptr() for field, tensor in tensors.items()}


def _row_head_batch(tensor: torch.Tensor, ragged: bool) -> tuple[int, int, int]:
    """Strides in elements of [rows, heads, ...] or [batch, rows, heads, ...]."""
    if ragged:
        return tensor.stride(0), tensor.stride(1), 0
    return tensor.stride(1), tensor.stride(2), tensor.stride(0)


def _strides(problem: Problem, buffers: Buffers) -> dict[str, int]:
    params = problem.params
    result: dict[str, int] = {}
    for name, tensor in (("out", buffers.out), ("lse", buffers.lse)):
        row, head, batch = (0, 0, 0) if tensor is None else _row_head_batch(tensor, problem.ragged)
        result |= {f"{name}_stride_row": row, f"{name}_stride_head": head, f"{name}_stride_batch": batch}
    custom, shared = buffers.custom_mask, 3 if problem.ragged else 4
    strides = (0, 0, 0, 0) if custom is None else custom.stride()
    result["custom_stride_row"] = strides[-2]
    result["custom_stride_head"] = strides[-3] if len(strides) == shared else 0
    result["custom_stride_batch"] = strides[0] if not problem.ragged and len(strides) > 2 else 0
    skip_map = (0, 0, 0, 0) if params.skip_map is None else params.skip_map.stride()
    result |= {f"skip_map_stride_{name}": skip_map[i] for i, name in enumerate(("batch", "head", "group"))}
    threshold = params.skip_softmax_threshold
    steps = threshold.stride() if isinstance(threshold, torch.Tensor) else ()
    result["threshold_stride_batch"], result["threshold_stride_head"] = (*steps, 0, 0)[:2]
    for name in ("q_descale", "k_descale", "v_descale"):
        value = getattr(params, name)
        steps = value.stride() if value is not None and value.dim() == 2 else (0, 0)
        result[f"{name}_stride_batch"], result[f"{name}_stride_head"] = steps
    pairs = () if params.stats is None else tuple(stride // 2 for stride in params.stats.stride()[:-1])
    result["stats_stride_batch"], result["stats_stride_head"] = (*pairs, 0, 0)[:2]
    return result


def _sizes(problem: Problem, kernel: Kernel) -> dict[str, int]:
    table = problem.params.page_table
    return {
        "batch": problem.batch,
        "heads_q": problem.heads_q,
        "heads_kv": problem.heads_kv,
        "len_q": problem.len_q,
        "len_k": problem.len_k,
        "head_dim_v": problem.head_dim_v,
        "page_size": problem.page_size,
        "page_box_rows": page_box_rows(problem.page_size, kernel.tile_n),
        "page_table_stride": 0 if table is None else table.stride(0),
        # A window over all keys shows no less than a wider one, and keeps what kernels add up far from 32 bits.
        "window_left": min(problem.window[0], problem.len_k),
        "window_right": problem.window[1],
        "chunk_size": problem.chunk_size,
        "heads_in_l2": heads_in_l2(problem),
    }


def _numbers(problem: Problem) -> dict[str, float]:
    """Scales of the softmax in base 2. Raw scores are q.k, or tanh(q.k * score_scale) where capped."""
    scale, cap = problem.softmax_scale, problem.softcap
    unit = cap if cap > 0 else scale
    return {
        "threshold_value": problem.threshold,
        "scale_log2": unit * LOG2E,
        "score_scale": scale / cap if cap > 0 else 0.0,
        "bias_scale": 1 / unit if problem.params.alibi_slopes is not None else 0.0,
    }


def _maps(problem: Problem, kernel: Kernel, buffers: Buffers) -> dict[str, TensorMapSpec]:
    params = problem.params
    ragged_k = problem.ragged and not problem.paged
    rows_k = page_box_rows(problem.page_size, kernel.tile_n) if problem.paged else kernel.tile_n
    hnd = problem.paged and params.kv_layout == "HND"
    dtype, out_dtype = kernel.dtype, kernel.out_dtype
    return {
        "tma_q": _map(problem, params.q, dtype, problem.ragged, kernel.group_rows),
        "tma_k": _map(problem, params.k, dtype, ragged_k, rows_k, hnd=hnd),
        "tma_v": _map(problem, params.v, dtype, ragged_k, rows_k, hnd=hnd),
        "tma_o": _map(problem, buffers.out, out_dtype, problem.ragged, kernel.group_rows),
    }


def _map(
    problem: Problem, tensor: torch.Tensor, dtype: str, ragged: bool, box_rows: int, *, hnd: bool = False
) -> TensorMapSpec:
    view = tensor.unsqueeze(0) if ragged else tensor.transpose(1, 2) if hnd else tensor
    outer, rows, heads, columns = view.shape
    # Note: a map cannot be empty. Nothing is ever loaded from an empty tensor, so any address serves.
    address = tensor.data_ptr() if tensor.numel() else problem.params.q.data_ptr()
    dims = (columns, max(1, rows), max(1, heads), max(1, outer))
    strides = (_stride(view, 1), _stride(view, 2), _stride(view, 0))
    return TensorMapSpec(address, dtype, dims, strides, (panel_columns(dtype), box_rows))


def _stride(view: torch.Tensor, dim: int) -> int:
    """Bytes from one index to the next; any legal value where the dimension has only one."""
    if view.shape[dim] <= 1:
        return max(TMA_BYTES, view.shape[-1] * view.element_size())
    return view.stride(dim) * view.element_size()
