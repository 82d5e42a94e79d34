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
from skimattn.codegen.parameter_block import OFFSETS
from skimattn.codegen.tiles.common import ELEMENT_BYTES

from .._call.arguments import POINTERS
from .._call.checks import MAX_DIM, MAX_STRIDE, TMA_BYTES, span_bytes
from .._call.options import threshold_value
from .._call.problem import Problem
from .._cuda import driver, memory, streams
from .._cuda.device import Device
from ..params import Params
from .buffers import Buffers
from .extent import Extent
from .loader import Loaded
from .look import Elsewhere, Looks, Side
from .plan import kv_box_lengths, l2_sections
from .planner import Planner
from .step import Step, writer
from .tensormap import address_comes_first

# The tensors that a call may have here, q, k and v first.
_LENGTHS = ("page_table", "cu_seqlens_q", "cu_seqlens_k", "seqused_k")
SERVED = frozenset(("q", "k", "v", *_LENGTHS, "skip_softmax_threshold", "out"))
_POINTER_OF = {name: field for field, name in POINTERS.items()}
_WORD = 8  # bytes of an address
_NEAR = 1 << 31  # entries of a page table
_Q_AT, _K_AT, _V_AT, _O_AT, _OUT_AT, _COUNTER_AT = (
    OFFSETS[name] // _WORD for name in ("tma_q", "tma_k", "tma_v", "tma_o", "out", "work_counter")
)
_MORE = {"cu_seqlens_q": 1, "cu_seqlens_k": 1}  # elements than requests


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
        self._counter = 0  # of the default stream, once it is known
        self._tile_m, self._window_left, self._least_rows = kernel.tile_m, form.window[0], least_rows
        self._page_size, self._heads_q, self._heads_kv = problem.page_size, problem.heads_q, problem.heads_kv
        self._key_bytes = (problem.head_dim + problem.head_dim_v) * ELEMENT_BYTES[kernel.dtype]
        self._ragged_q, self._ragged_k = form.ragged, params.cu_seqlens_k is not None
        self._lengths_k = self._ragged_k or params.seqused_k is not None
        self._host_threshold = form.skip != "dense" and not isinstance(params.skip_softmax_threshold, torch.Tensor)
        self._given_out = params.out is not None  # the last of the names then
        self._looks = Looks(names, problem, gpu.ordinal)
        self._twin_at = self._looks.twin_at
        self._find_others(names[3:-1] if self._given_out else names[3:], problem)
        self._lengths_in_box = range(MAX_DIM)
        if not form.paged:
            self._lengths_in_box = kv_box_lengths(planned.maps["tma_k"].box[1], kernel.tile_n)
        self._start, self._current = driver.raw("cuLaunchKernelEx"), driver.raw("cuCtxGetCurrent", brief=True)
        self._found = ctypes.c_void_p(0)
        self._found_at = ctypes.byref(self._found)
        self._lock = threading.Lock()
        self._sizes: tuple[object, ...] | None = None  # that the step was filled in for
        self._step = Step()
        self._step.fill(planned, loaded)
        self._prepare_out(problem, buffers)
        self._prepare_writers()

    def _find_others(self, names: Sequence[str], problem: Problem) -> None:
        """What there is besides q, k, v and the output."""
        params = problem.params
        self._measured = bool(names) or params.max_seqlen_q is not None or params.max_seqlen_k is not None
        self._table = names.index("page_table") if "page_table" in names else -1
        self._offsets_q = names.index("cu_seqlens_q") if "cu_seqlens_q" in names else -1
        self._pointers_at = [OFFSETS[_POINTER_OF[name]] // _WORD for name in names]
        self._counts = []  # of elements: so many more than requests, times so many; 0 = it is looked at apart
        self._threshold_strides: tuple[int, ...] = ()
        for name in names:
            per_head = getattr(params, name).dim() == 2
            times = problem.heads_q if per_head else 1
            self._counts.append((_MORE.get(name, 0), 0 if name == "page_table" else times))
            if name == "skip_softmax_threshold":
                self._threshold_strides = (times, 1) if per_head else (1, 0)

    def _prepare_out(self, problem: Problem, buffers: Buffers) -> None:
        """Outputs are contiguous here, whoever made them."""
        columns, heads, size = problem.head_dim_v, problem.heads_q, buffers.out.element_size()
        self._plain = type(problem.params.q) in memory.PLAIN
        self._head_dim_v, self._out_dtype, self._out_size = columns, buffers.out.dtype, size
        self._row_out = heads * columns
        self._dense = columns, heads, heads * columns * size, columns * size, columns * size  # as in a Side
        self._out_like_q = problem.head_dim == columns and buffers.out.dtype == problem.params.q.dtype

    def _prepare_writers(self) -> None:
        """What writes what differs from call to call."""
        block, maps = self._step.memory, self._step.maps
        self._words = block.cast("Q")
        self._to_q, self._to_k, self._to_v, self._to_o = maps["tma_q"], maps["tma_k"], maps["tma_v"], maps["tma_o"]
        self._write_lengths = writer(block, "batch", "heads_q", "heads_kv", "len_q", "len_k")
        self._write_window = writer(block, "page_table_stride", "window_left")
        self._write_sections = writer(block, "heads_in_l2", "requests_in_l2")
        # Everything is contiguous here, but need not have been in the call that the step was filled in for.
        writer(block, "out_stride_row", "out_stride_head")(self._row_out, self._head_dim_v)
        if self._threshold_strides:
            writer(block, "threshold_stride_batch", "threshold_stride_head")(*self._threshold_strides)
        self._batch_stride_at = OFFSETS["out_stride_batch"] // _WORD
        self._addresses_first = address_comes_first()

    def launch(self, params: Params, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Enqueue on torch's current stream; the output.

        Raises:
            Elsewhere: it is not for here.
        """
        # Note: long and plain on purpose. Half a microsecond here is one on the hosts of GPUs, and a call for each of
        # these steps made them twice as slow.
        looks, at = self._looks, self._twin_at
        recent, compared = looks.recent, tensors
        if at and tensors[at] is tensors[at - 1]:
            recent, compared = looks.recent_twins, tensors[:at] + tensors[at + 1 :]
        for look in recent:
            if look.alike(*compared):
                break
        else:
            look = looks.examine(tensors)
        q, k, v = tensors[:3]
        shape_q, shape_k, at_q, at_k, at_v = q.shape, k.shape, q.data_ptr(), k.data_ptr(), v.data_ptr()
        extent_q, extent_k = _extent(q, shape_q, look.q), _extent(k, shape_k, look.k)
        rows, batch, keys, outer = extent_q[1], extent_q[3], extent_k[1], extent_k[3]
        alike = look.v == look.k and v.shape == shape_k and (outer == 1 or v.stride() == k.stride())
        extent_v = extent_k if alike else _extent(v, v.shape, look.v)
        if (at_q | at_k | at_v) % TMA_BYTES or not (at_q and at_k and at_v) or rows < self._least_rows:
            raise Elsewhere
        if not alike and (extent_v[1] != keys or extent_v[3] != outer):
            raise Elsewhere
        pointers: Sequence[int] = ()
        ragged_q = self._ragged_q
        if self._measured:
            others = tensors[3:-1] if self._given_out else tensors[3:]
            requests = others[self._offsets_q].numel() - 1 if ragged_q else batch
            pointers = self._pointers(others, requests)
            len_q, len_k, total, width = self._lengths(params, others, rows, requests, keys, outer)
        else:
            requests, len_q, len_k, total, width = batch, rows, keys, batch * keys, 0
            if outer != batch:
                raise Elsewhere
        if len_k not in self._lengths_in_box:
            raise Elsewhere
        ordinal, row_out = self._ordinal, self._row_out
        if self._given_out:
            out = self._check_out(shape_q, tensors)
        elif self._plain:
            columns = self._head_dim_v
            strides = (row_out, columns, 1) if ragged_q else (rows * row_out, row_out, columns, 1)
            out = memory.empty((*shape_q[:-1], columns), strides, self._out_dtype, ordinal)
        else:
            out = q.new_empty((*shape_q[:-1], self._head_dim_v), dtype=self._out_dtype)
        address, stream = out.data_ptr(), streams.current(ordinal)
        counter = self._counter if stream == streams.LEGACY else 0
        if not counter:
            counter = self._find_counter(stream)
        with self._lock:
            step, words, config = self._step, self._words, self._step.config
            sizes = (extent_q, extent_k, extent_v, requests, len_q, len_k, total, width)
            if sizes != self._sizes:
                self._sizes = None  # until all of it is there
                self._to_q.rewrite(at_q, extent_q)
                self._to_k.rewrite(at_k, extent_k)
                if alike:
                    self._to_v.memory[:] = self._to_k.memory
                else:
                    self._to_v.rewrite(at_v, extent_v)
                columns, heads, row, head, legal = self._dense
                batch_stride = 0 if ragged_q else rows * row_out
                request = batch_stride * self._out_size if batch > 1 else legal
                extent_out = columns, rows, heads, batch, row if rows > 1 else legal, head, request
                if self._out_like_q and extent_out == extent_q:
                    self._to_o.memory[:] = self._to_q.memory
                else:
                    self._to_o.rewrite(address, extent_out)
                words[self._batch_stride_at] = batch_stride
                self._write_lengths(requests, self._heads_q, self._heads_kv, len_q, len_k)
                self._write_window(width, self._window_left if self._window_left < len_k else len_k)
                self._write_sections(*l2_sections(requests, self._heads_kv, total * self._key_bytes, ragged_q))
                tiles = -(-rows // self._tile_m)
                items = (tiles + requests if ragged_q else tiles * requests) * self._heads_q
                config.gridDimX = items if items < self._sm_count else self._sm_count
                self._sizes = sizes
            if self._addresses_first:
                words[_Q_AT], words[_K_AT], words[_V_AT], words[_O_AT] = at_q, at_k, at_v, address
            else:
                self._to_q.move(at_q)
                self._to_k.move(at_k)
                self._to_v.move(at_v)
                self._to_o.move(address)
            words[_OUT_AT], words[_COUNTER_AT], config.hStream = address, counter, stream
            for at, pointer in zip(self._pointers_at, pointers, strict=True):
                words[at] = pointer
            if self._host_threshold:
                threshold = params.skip_softmax_threshold
                if type(threshold) is not float or not 0.0 <= threshold <= 1.0:
                    threshold = threshold_value(params)
                step.block.threshold_value = threshold
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
        if out.shape != (*shape_q[:-1], self._head_dim_v) or not out.is_contiguous() or start % TMA_BYTES or not start:
            raise Elsewhere
        end = start + out.numel() * self._out_size
        for tensor in inputs:
            other = tensor.data_ptr()
            if other < end and start < other + span_bytes(tensor):
                raise Elsewhere
        return out

    def _find_counter(self, stream: int) -> int:
        counter = self._gpu.counters.of_launch(stream)
        if stream == streams.LEGACY:
            self._counter = counter
        return counter

    def _pointers(self, others: Sequence[torch.Tensor], batch: int) -> list[int]:
        """Where they are, if they have as many elements as so many requests need."""
        pointers: list[int] = []
        last, count, pointer = None, 0, 0
        for tensor, (more, times) in zip(others, self._counts, strict=True):
            if tensor is not last:
                last, count, pointer = tensor, tensor.numel(), tensor.data_ptr()
            if not pointer or (times and count != (batch + more) * times):
                raise Elsewhere
            pointers.append(pointer)
        return pointers

    def _lengths(
        self, params: Params, others: Sequence[torch.Tensor], rows: int, batch: int, keys: int, outer: int
    ) -> tuple[int, int, int, int]:
        """The most rows and keys of a request, keys of all, and entries of the page table for one, if all agree."""
        len_q, len_k, page_size, width = rows, keys, self._page_size, 0
        if page_size:
            table = others[self._table]
            entries, width = table.shape
            len_k = width * page_size
            if entries != batch or len_k >= MAX_DIM or batch * width >= _NEAR or not table.is_contiguous():
                raise Elsewhere
        elif not self._ragged_k and outer != batch:
            raise Elsewhere
        if params.max_seqlen_q is not None:
            len_q = _cut(params.max_seqlen_q, rows, known=not self._ragged_q)
        if params.max_seqlen_k is not None:
            len_k = _cut(params.max_seqlen_k, len_k, known=not self._lengths_k)
        if batch < 1:
            raise Elsewhere
        total = keys if self._ragged_k else batch * len_k
        return len_q, len_k, min(total, outer * page_size) if page_size else total, width


def _cut(hint: object, most: int, *, known: bool) -> int:
    """The longest request, as the caller says, cut to ``most``; ``known`` = all have that length."""
    if type(hint) is not int or hint < 0 or (known and hint < most):
        raise Elsewhere
    return hint if hint < most else most


def _extent(tensor: torch.Tensor, shape: tuple[int, ...], side: Side) -> Extent:
    """What :func:`.extent.extent_of` says of a tensor of which only rows, requests and their stride are not known."""
    columns, heads, row, head, legal, size, rows_at = side
    outer, rows, request = 1, shape[rows_at], legal
    if len(shape) == 4:
        outer = shape[0]
        if outer > 1:
            request = tensor.stride()[0] * size
            if request % TMA_BYTES or request >= MAX_STRIDE:
                raise Elsewhere
    if not 0 < rows < MAX_DIM or not 0 < outer < MAX_DIM:
        raise Elsewhere
    return columns, rows, heads, outer, row if rows > 1 else legal, head, request
