"""What a launch consists of, computed without CUDA: kernels, with tensor maps, parameter values and a grid for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles.common import ELEMENT_BYTES

from .._call.checks import MAX_DIM
from .._call.problem import Problem
from .buffers import ARGUMENTS, Buffers
from .extent import extent_of

L2_KV_BYTES = 32 << 20  # keys and values that stay in L2 while a section of heads is worked on
LEAST_BOX_ROWS = 16  # of one copy from what is not paged
WARP_THREADS = 32  # each of which knows one request of a ragged batch
LOG2E = math.log2(math.e)
Value = int | float
Box = tuple[int, int, int, int]


class TensorMapSpec(NamedTuple):
    """A TMA tensor map, innermost dimension first; 128-byte swizzle, zero fill outside.

    ``dims`` are (columns, rows, heads, requests or pages), ``strides`` the bytes of the last three, ``box`` is what
    one copy takes of each dimension.
    """

    address: int
    dtype: str
    dims: tuple[int, int, int, int]
    strides: tuple[int, int, int]
    box: tuple[int, int, int, int]


@dataclass(slots=True, eq=False)
class KernelLaunch:
    """One kernel of a launch: its tensor maps, its grid, and all other parameter fields that are not zero.

    ``fixed`` holds those that follow from the kernel and the call's form, heads and columns, and is one object for all
    launches that share them; ``scalars`` the others. One that ``shares_block`` is told what the one before it is.
    """

    kernel: Kernel
    maps: dict[str, TensorMapSpec]
    fixed: Mapping[str, Value]
    scalars: dict[str, Value]
    grid: int
    shares_block: bool = False

    @property
    def role(self) -> str:
        """The phase that its kernel is loaded for: MLA's is ``decode``."""
        return "decode" if self.kernel.phase == "mla" else self.kernel.phase


@dataclass(slots=True, eq=False)
class LaunchPlan:
    """Everything one launch needs: its kernels in the order of the stream. A prefill of 16 bits has one."""

    kernels: tuple[KernelLaunch, ...]


def numbers_of(problem: Problem) -> tuple[int, int, int, int, int]:
    """What calls of one form have to agree on for the fixed half of their plans to be the same."""
    return problem.heads_q, problem.heads_kv, problem.head_dim, problem.head_dim_v, problem.page_size


def work_items(problem: Problem, kernel: Kernel) -> int:
    """Query tiles over all heads and requests; ragged batches: an upper bound that needs no lengths."""
    if problem.ragged:
        return (-(-problem.rows // kernel.tile_m) + problem.batch) * problem.heads_q
    return -(-problem.rows // kernel.tile_m) * problem.heads_q * problem.batch


def page_box_rows(page_size: int, tile_n: int) -> int:
    """Rows of one copy from a page: the largest power of two that divides the page and the tile."""
    either = page_size | tile_n
    return either & -either


def kv_box_rows(len_k: int, tile_n: int) -> int:
    """Rows of one copy without pages: a tile, or less where no request has as many keys, and others lie behind them."""
    return min(tile_n, max(LEAST_BOX_ROWS, 1 << max(0, len_k - 1).bit_length()))


def kv_box_lengths(box_rows: int, tile_n: int) -> range:
    """The lengths of which :func:`kv_box_rows` says ``box_rows``."""
    fewer = 1 << (box_rows - 1).bit_length() - 1  # rows of the box that is one smaller
    return range(fewer + 1 if box_rows > LEAST_BOX_ROWS else 0, box_rows + 1 if box_rows < tile_n else MAX_DIM)


def shared_in_l2(problem: Problem, varlen_q: bool) -> tuple[int, int]:
    """What shares L2 in the work order: (request, kv head) pairs and 0; with ``varlen_q`` kv heads and requests."""
    batch = problem.batch
    keys = batch * problem.len_k if problem.params.cu_seqlens_k is None else problem.keys
    if problem.form.paged:
        keys = min(keys, problem.params.k.shape[0] * problem.page_size)
    columns = problem.head_dim + (0 if problem.latent else problem.head_dim_v)
    bytes_per_key = columns * ELEMENT_BYTES[problem.keys_dtype]
    return l2_sections(batch, problem.heads_kv, keys * bytes_per_key, varlen_q)


def l2_sections(batch: int, heads_kv: int, head_bytes: int, varlen_q: bool) -> tuple[int, int]:
    """See :func:`shared_in_l2`; ``head_bytes`` are those of one kv head's keys and values over all requests.

    All requests count as equally long: how they differ is not known here.
    """
    fitting = L2_KV_BYTES * batch // (head_bytes or 1)
    if not varlen_q:
        pairs = batch * heads_kv  # no calls of min and max: every launch in new sizes comes here
        return (fitting or 1) if fitting < pairs else pairs, 0
    most = batch if batch < WARP_THREADS else WARP_THREADS
    if fitting < most:
        most = fitting or 1
    requests = -(-batch // -(-batch // most))  # the same number of sections, the last of which is not small
    heads = fitting // requests
    return (heads or 1) if heads < heads_kv else heads_kv, requests


def argument(problem: Problem, buffers: Buffers, name: str) -> torch.Tensor | None:
    """The tensor behind an argument's name, as the kernel sees it; None where there is none."""
    value = getattr(buffers if name in ARGUMENTS else problem.params, name)
    return value if isinstance(value, torch.Tensor) else None


def sized_scalars(problem: Problem, kernel: Kernel, buffers: Buffers) -> dict[str, Value]:
    """What follows from lengths and strides."""
    form, len_k, out, lse = problem.form, problem.len_k, buffers.out, buffers.lse
    strides = out.stride()
    batch, row, head = (0, *strides[:2]) if form.ragged else strides[:3]
    heads_in_l2, requests_in_l2 = shared_in_l2(problem, problem.varlen_q)
    scalars: dict[str, Value] = {
        "batch": problem.batch,
        "len_q": problem.len_q,
        "len_k": len_k,
        # A window over all keys shows no less than a wider one, and keeps what kernels add up far from 32 bits.
        "window_left": min(form.window[0], len_k),
        "heads_in_l2": heads_in_l2,
        "requests_in_l2": requests_in_l2,
        "threshold_value": problem.threshold,
        "out_stride_batch": batch,
        "out_stride_row": row,
        "out_stride_head": head,
    }
    if lse is not None:
        strides = lse.stride()
        batch, row, head = (0, *strides[:2]) if form.ragged else strides[:3]
        scalars["lse_stride_batch"], scalars["lse_stride_row"], scalars["lse_stride_head"] = batch, row, head
    if form.paged:
        assert problem.params.page_table is not None
        scalars["page_table_stride"] = problem.params.page_table.stride(0)
    else:
        scalars["kv_box_rows"] = kv_box_rows(len_k, kernel.tile_n)
    if form.checks:
        _add_strides_of_options(scalars, problem, buffers)
    return scalars


def _add_strides_of_options(scalars: dict[str, Value], problem: Problem, buffers: Buffers) -> None:
    """Those of tensors that few calls have."""
    params, custom = problem.params, buffers.custom_mask
    if custom is not None:
        strides = [step * (size > 1) for size, step in zip(custom.shape, custom.stride(), strict=True)]  # 1: for all
        scalars["custom_stride_row"] = strides[-2]
        scalars["custom_stride_head"] = strides[-3] if len(strides) == (3 if problem.ragged else 4) else 0
        scalars["custom_stride_batch"] = strides[0] if not problem.ragged and len(strides) > 2 else 0
        scalars["custom_keys"] = problem.custom_keys
    if params.skip_map is not None:
        for name, stride in zip(("batch", "head", "group"), params.skip_map.stride(), strict=False):
            scalars[f"skip_map_stride_{name}"] = stride
    if isinstance(params.skip_softmax_threshold, torch.Tensor):
        steps = params.skip_softmax_threshold.stride()
        scalars["threshold_stride_batch"], scalars["threshold_stride_head"] = (*steps, 0)[:2]
    for name in ("q_descale", "k_descale", "v_descale"):
        value = getattr(params, name)
        if value is not None:
            steps = value.stride() if value.dim() == 2 else (0, 0)
            scalars[f"{name}_stride_batch"], scalars[f"{name}_stride_head"] = steps
    slopes = params.alibi_slopes
    if slopes is not None:
        scalars["alibi_stride_batch"] = slopes.stride(0) if slopes.dim() == 2 else 0
    if params.stats is not None:
        pairs = (*(stride // 2 for stride in params.stats.stride()[:-1]), 0, 0)
        scalars["stats_stride_batch"], scalars["stats_stride_head"] = pairs[:2]


def fixed_scalars(problem: Problem, kernel: Kernel) -> dict[str, Value]:
    """What all calls share that differ in lengths only. Scales of the softmax are in base 2.

    Raw scores are q.k, or tanh(q.k * score_scale) where capped.
    """
    form, scale, cap = problem.form, problem.softmax_scale, problem.softcap
    unit = cap if cap > 0 else scale
    paged = {}
    if form.paged:
        paged = {
            "page_size": problem.page_size,
            "page_box_rows": page_box_rows(problem.page_size, kernel.tile_n),
        }
    return {
        "heads_q": problem.heads_q,
        "heads_kv": problem.heads_kv,
        "head_dim_v": problem.head_dim_v,
        "window_right": form.window[1],
        "chunk_size": form.chunk_size,
        "scale_log2": unit * LOG2E,
        "score_scale": scale / cap if cap > 0 else 0.0,
        "bias_scale": 1 / unit if form.alibi else 0.0,
        **paged,
    }


def map_of(tensor: torch.Tensor, dtype: str, box: Box, problem: Problem, hnd: bool = False) -> TensorMapSpec:
    """The map over a tensor of the call."""
    extent = extent_of(tensor.shape, tensor.stride(), ELEMENT_BYTES[dtype], hnd)
    # Note: a map cannot be empty. Nothing is ever loaded from an empty tensor, so any address serves.
    address = tensor.data_ptr() or problem.params.q.data_ptr()
    return TensorMapSpec(address, dtype, extent[:4], extent[4:], box)
