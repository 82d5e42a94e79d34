"""The launch of a new call object whose form is known, in one pass: its sizes are filled into what stands ready.

A serving engine makes a new call in every layer and step, most of them in sizes not seen before, and waits for the host
wherever that takes longer than a kernel. So what stands here in one piece stands elsewhere in parts that explain
themselves (:mod:`skimattn._call.sizes`, :mod:`.plan`, :mod:`.prepared`), and a test compares what both send to the
driver byte by byte. Whatever is out of the ordinary, or would be refused, is left to them (:class:`Elsewhere`).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

import torch
from skimattn.codegen.tiles.common import ELEMENT_BYTES

from .._call.arguments import POINTERS
from .._call.checks import MAX_DIM, MAX_STRIDE, TMA_BYTES, span_bytes
from .._call.options import threshold_value
from .._call.problem import Problem
from .._cuda import driver, streams
from .._cuda.device import Device
from ..params import Params
from .buffers import Buffers
from .loader import Loaded
from .plan import Extent, extent_of, kv_box_rows, l2_sections
from .planner import Planner
from .step import Step

# The tensors that a call may have here, q, k and v first.
_LENGTHS = ("page_table", "cu_seqlens_q", "cu_seqlens_k", "seqused_k")
SERVED = frozenset(("q", "k", "v", *_LENGTHS, "skip_softmax_threshold", "out"))
_POINTER_OF = {name: field for field, name in POINTERS.items()}
_NEAR = 1 << 31  # entries of a page table
# How many more entries they have than there are requests.
_EXTRA = {"cu_seqlens_q": 1, "cu_seqlens_k": 1, "seqused_k": 0, "skip_softmax_threshold": 0}


class Elsewhere(Exception):
    """This call is for others to launch, or to refuse; nothing happened yet."""


class Shortcut:
    """Launches calls of one form, with one set of heads, columns and page size, on one device, one after the other."""

    def __init__(
        self,
        names: tuple[str, ...],
        problem: Problem,
        buffers: Buffers,
        planner: Planner,
        gpu: Device,
        loaded: Loaded,
        least_rows: int,
    ) -> None:
        """``problem`` is a call of that form, whose tensors are called ``names``; ``least_rows`` are prefill's."""
        (planned,) = planner.plan(problem, buffers).kernels
        form, params, kernel = problem.form, problem.params, loaded.kernel
        self._gpu, self._ordinal, self._sm_count, self._context = gpu, gpu.ordinal, gpu.sm_count, gpu.context
        self._tile_m, self._tile_n, self._window_left = kernel.tile_m, kernel.tile_n, form.window[0]
        self._page_size, self._least_rows = problem.page_size, least_rows
        self._columns_and_heads = (problem.head_dim, problem.head_dim, problem.heads_q, problem.heads_kv)
        self._head_dim_v = problem.head_dim_v
        self._size, self._out_size = ELEMENT_BYTES[kernel.dtype], ELEMENT_BYTES[kernel.out_dtype]
        self._key_bytes = (problem.head_dim + problem.head_dim_v) * self._size
        self._paged, self._hnd = form.paged, form.paged and params.kv_layout == "HND"
        self._ragged_q, self._ragged_k = form.ragged, params.cu_seqlens_k is not None
        self._lengths_k = self._ragged_k or params.seqused_k is not None
        self._host_threshold = form.skip != "dense" and not isinstance(params.skip_softmax_threshold, torch.Tensor)
        self._dtype, self._ranks = params.q.dtype, (params.q.dim(), params.k.dim())
        self._given_out = params.out is not None  # the last of the names then
        others = names[3:-1] if self._given_out else names[3:]
        rest = {"skip_softmax_threshold": (problem.heads_q,)}  # of the shape, where there are two dimensions
        self._others = []
        for name in others:
            tensor = getattr(params, name)
            tail = rest.get(name, ()) if tensor.dim() == 2 else ()
            self._others.append((_POINTER_OF[name], tensor.dtype, _EXTRA.get(name), tail))
        self._fields = [field for field, *_ in self._others]
        self._offsets_q = others.index("cu_seqlens_q") if form.ragged else -1
        self._table = others.index("page_table") if form.paged else -1
        self._v_like_k = problem.head_dim == problem.head_dim_v
        self._out_dtype, self._out_like_q = buffers.out.dtype, self._v_like_k and buffers.out.dtype == params.q.dtype
        self._box_rows = planned.maps["tma_k"].box[1]
        self._step, self._lock = Step(), threading.Lock()
        self._sizes: tuple[object, ...] | None = None  # that the step was filled in for
        self._step.fill(planned, loaded)
        maps = self._step.maps
        self._to_q, self._to_k, self._to_v, self._to_o = maps["tma_q"], maps["tma_k"], maps["tma_v"], maps["tma_o"]
        self._start, self._current = driver.raw("cuLaunchKernelEx"), driver.raw("cuCtxGetCurrent")
        self._found = ctypes.c_void_p(0)
        self._found_at = ctypes.byref(self._found)

    def launch(self, params: Params, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Enqueue on torch's current stream; the output.

        Raises:
            Elsewhere: it is not for here.
        """
        # Note: long and plain on purpose. Half a microsecond here is one on the hosts of GPUs, and a call for each of
        # these steps made them twice as slow.
        q, k, v = tensors[:3]
        others = tensors[3:-1] if self._given_out else tensors[3:]
        dtype, ordinal = self._dtype, self._ordinal
        if q.dtype is not dtype or k.dtype is not dtype or v.dtype is not dtype:
            raise Elsewhere
        if q.is_neg() or k.is_neg() or v.is_neg():
            raise Elsewhere
        if q.get_device() != ordinal or k.get_device() != ordinal or v.get_device() != ordinal:
            raise Elsewhere
        if torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors]):
            raise Elsewhere
        shape_q, shape_k, strides_q, strides_k = q.shape, k.shape, q.stride(), k.stride()
        if (len(shape_q), len(shape_k)) != self._ranks or 0 in shape_q or 0 in shape_k:
            raise Elsewhere
        size = self._size
        extent_q, extent_k = extent_of(shape_q, strides_q, size), extent_of(shape_k, strides_k, size, self._hnd)
        columns_q, rows, heads_q, batch, a, b, c = extent_q
        columns_k, keys, heads_k, outer, d, e, f = extent_k
        alike = self._v_like_k and v.shape == shape_k and v.stride() == strides_k
        extent_v = extent_k if alike else self._extent_v(v, k)
        at_q, at_k, at_v = q.data_ptr(), k.data_ptr(), v.data_ptr()
        bits = a | b | c | d | e | f
        if (columns_q, columns_k, heads_q, heads_k) != self._columns_and_heads or rows < self._least_rows:
            raise Elsewhere
        if (bits | at_q | at_k | at_v) % TMA_BYTES or bits >= MAX_STRIDE or (rows | batch | keys | outer) >= MAX_DIM:
            raise Elsewhere
        if strides_q[-1] != 1 or strides_k[-1] != 1 or not (at_q and at_k and at_v):
            raise Elsewhere
        pointers = [tensor.data_ptr() for tensor in others]
        if 0 in pointers:
            raise Elsewhere
        if others or params.max_seqlen_q is not None or params.max_seqlen_k is not None:
            batch, len_q, len_k, total = self._lengths(params, others, rows, batch, keys, outer)
        else:
            len_q, len_k, total = rows, keys, batch * keys
            if outer != batch or kv_box_rows(keys, self._tile_n) != self._box_rows:
                raise Elsewhere
        like_q = self._out_like_q and q.is_contiguous()
        if self._given_out:
            out = self._check_out(shape_q, tensors)
        elif like_q:
            out = torch.empty_like(q)
        else:
            out = q.new_empty((*shape_q[:-1], self._head_dim_v), dtype=self._out_dtype)
        address, strides, stream = out.data_ptr(), out.stride(), streams.current(ordinal)
        counter, step, tiles = self._gpu.counters.of_launch(stream), self._step, -(-rows // self._tile_m)
        with self._lock:
            block, config = step.block, step.config
            sizes = (extent_q, extent_k, extent_v, strides, batch, len_q, len_k, total)
            if sizes == self._sizes:
                self._to_q.move(at_q)
                self._to_k.move(at_k)
                self._to_v.move(at_v)
                self._to_o.move(address)
            else:
                self._sizes = None  # until all of it is there
                self._to_q.rewrite(at_q, extent_q)
                self._to_k.rewrite(at_k, extent_k)
                if alike:
                    self._to_v.copy(self._to_k, at_v)
                else:
                    self._to_v.rewrite(at_v, extent_v)
                if like_q:
                    self._to_o.copy(self._to_q, address)
                else:
                    self._to_o.rewrite(address, extent_of(out.shape, strides, self._out_size))
                block.batch, block.len_q, block.len_k = batch, len_q, len_k
                sections = l2_sections(batch, heads_k, total * self._key_bytes, self._ragged_q)
                block.heads_in_l2, block.requests_in_l2 = sections
                block.window_left = min(self._window_left, len_k)
                block.out_stride_row, block.out_stride_head = strides[-3], strides[-2]
                block.out_stride_batch = 0 if self._ragged_q else strides[0]
                config.gridDimX = min(self._sm_count, (tiles + batch if self._ragged_q else tiles * batch) * heads_q)
                self._sizes = sizes
            block.out, block.work_counter, config.hStream = address, counter, stream
            if others:
                for field, at in zip(self._fields, pointers, strict=True):
                    setattr(block, field, at)
                if self._paged:
                    block.page_table_stride = others[self._table].shape[1]
            if self._host_threshold:
                block.threshold_value = threshold_value(params)
            self._current(self._found_at)
            if self._found.value != self._context:
                with driver.current_context(self._context):
                    status = self._start(*step.arguments)
            else:
                status = self._start(*step.arguments)
        if status:
            driver.raise_for(f"cuLaunchKernelEx of {step.name}", status)
        return out

    def _check_out(self, shape_q: tuple[int, ...], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output that the caller gave, which is as one that is made here would be, and apart from everything."""
        *inputs, out = tensors
        start = out.data_ptr()
        if out.dtype is not self._out_dtype or out.get_device() != self._ordinal or out.is_neg() or not start:
            raise Elsewhere
        if out.shape != (*shape_q[:-1], self._head_dim_v) or not out.is_contiguous() or start % TMA_BYTES:
            raise Elsewhere
        end = start + out.numel() * self._out_size
        for tensor in inputs:
            other = tensor.data_ptr()
            if other < end and start < other + span_bytes(tensor):
                raise Elsewhere
        return out

    def _extent_v(self, v: torch.Tensor, k: torch.Tensor) -> Extent:
        """What V's map covers where it looks unlike K's."""
        shape, strides = v.shape, v.stride()
        if shape[:-1] != k.shape[:-1] or shape[-1] != self._head_dim_v or strides[-1] != 1:
            raise Elsewhere
        extent = extent_of(shape, strides, self._size, self._hnd)
        bits = extent[4] | extent[5] | extent[6]
        if bits % TMA_BYTES or bits >= MAX_STRIDE:
            raise Elsewhere
        return extent

    def _lengths(
        self, params: Params, others: Sequence[torch.Tensor], rows: int, batch: int, keys: int, outer: int
    ) -> tuple[int, int, int, int]:
        """Requests, the most rows and keys of one, and keys of all, if all tensors agree on them."""
        len_q, len_k, page_size = rows, keys, self._page_size
        if others:
            if self._ragged_q:
                batch = others[self._offsets_q].shape[0] - 1
            known: tuple[torch.Tensor, int | None] | None = None
            for (_, dtype, extra, tail), tensor in zip(self._others, others, strict=True):
                if known is not None and tensor is known[0] and extra == known[1]:
                    continue  # one tensor of offsets for queries and keys
                if tensor.dtype is not dtype or tensor.get_device() != self._ordinal or not tensor.is_contiguous():
                    raise Elsewhere
                if extra is not None and tensor.shape != (batch + extra, *tail):
                    raise Elsewhere
                if tensor.is_neg():
                    raise Elsewhere
                known = tensor, extra
        if page_size:
            table = others[self._table].shape
            len_k = table[-1] * page_size
            if (
                len(table) != 2
                or table[0] != batch
                or keys != page_size
                or len_k >= MAX_DIM
                or batch * table[-1] >= _NEAR
            ):
                raise Elsewhere
        elif not self._ragged_k and outer != batch:
            raise Elsewhere
        if params.max_seqlen_q is not None:
            len_q = _cut(params.max_seqlen_q, rows, known=not self._ragged_q)
        if params.max_seqlen_k is not None:
            len_k = _cut(params.max_seqlen_k, len_k, known=not self._lengths_k)
        if batch < 1 or (not page_size and kv_box_rows(len_k, self._tile_n) != self._box_rows):
            raise Elsewhere
        total = keys if self._ragged_k else batch * len_k
        return batch, len_q, len_k, min(total, outer * page_size) if page_size else total


def _cut(hint: object, most: int, *, known: bool) -> int:
    """The longest request, as the caller says, cut to ``most``; ``known`` = all have that length."""
    if type(hint) is not int or hint < 0 or (known and hint < most):
        raise Elsewhere
    return min(hint, most)
