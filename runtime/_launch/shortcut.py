"""The launch of a new call object whose form is known, in one pass: its sizes are filled into what stands ready.

A serving engine makes a new call in every layer and step, most of them in sizes not seen before, and waits for the host
wherever that takes longer than a kernel. So what stands here in one piece stands elsewhere in parts that explain
themselves (:mod:`skimattn._call.sizes`, :mod:`.plan`, :mod:`.prepared`), and a test compares what both send to the
driver byte by byte. Whatever is out of the ordinary, or would be refused, is left to them (:class:`Elsewhere`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch

from .._call.checks import MAX_DIM, MAX_STRIDE, TMA_BYTES, span_bytes
from .._call.options import threshold_value
from .._call.problem import Problem
from .._cuda import memory, streams
from .._cuda.device import Device
from ..params import Params
from .buffers import WORKSPACE, Buffers
from .extent import Extent
from .fitted import Fitted
from .loader import Loaded
from .look import Elsewhere, Looks, Side
from .planner import Planner

# The tensors that a call may have here, q, k and v first.
_LENGTHS = ("page_table", "cu_seqlens_q", "cu_seqlens_k", "seqused_k")
_OUTPUTS = ("out", "lse")
SERVED = frozenset(("q", "k", "v", *_LENGTHS, "skip_softmax_threshold", *_OUTPUTS))
_NEAR = 1 << 31  # entries of a page table
_MORE = {"cu_seqlens_q": 1, "cu_seqlens_k": 1}  # elements than requests
_ONE, _FLOAT = (1,), torch.float32
Result = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class Shortcut:
    """Launches calls of one form, with one set of heads, columns and page size, on one device, one after the other."""

    def __init__(
        self,
        form: Hashable,
        names: tuple[str, ...],
        problem: Problem,
        buffers: Buffers,
        gpu: Device,
        phases: Callable[[int, int], tuple[str, ...]],
    ) -> None:
        """No kernels are there yet.

        Args:
            form: stands for what all calls have in common.
            names: how their tensors are called.
            problem: one of them.
            buffers: what was made for it.
            gpu: where.
            phases: that requests may be in, by the most rows and keys of one.
        """
        params = problem.params
        self.form, self._gpu, self._ordinal = form, gpu, gpu.ordinal
        self._phases, self._fitted = phases, dict[tuple[str, ...], Fitted]()
        self._counter = 0  # of the default stream, once it is known
        self._page_size, self._heads_q = problem.page_size, problem.heads_q
        self._ragged_q, self._ragged_k = problem.ragged, params.cu_seqlens_k is not None
        self._lengths_k = self._ragged_k or params.seqused_k is not None
        self._host_threshold = problem.skip != "dense" and not isinstance(params.skip_softmax_threshold, torch.Tensor)
        self._looks = Looks(names, problem, gpu.ordinal)
        self._twin_at = self._looks.twin_at
        self._plain = type(params.q) in memory.PLAIN
        self._head_dim_v, self._row_out = problem.head_dim_v, problem.heads_q * problem.head_dim_v
        self._out_dtype, self._with_lse, self._return_lse = (
            buffers.out.dtype,
            buffers.lse is not None,
            params.return_lse,
        )
        self._given_out, self._given_lse = params.out is not None, params.lse is not None
        self._makes_out = self._plain and not (self._given_out or self._with_lse)  # and nothing else
        self._others_end = len(names) - self._given_out - self._given_lse  # outputs come last
        self._find_others(names[3 : self._others_end], problem)

    def _find_others(self, names: Sequence[str], problem: Problem) -> None:
        """What there is besides q, k, v and outputs."""
        params = problem.params
        self._measured = bool(names) or params.max_seqlen_q is not None or params.max_seqlen_k is not None
        self._only_offsets = tuple(names) == ("cu_seqlens_q", "cu_seqlens_k") and problem.own_keys
        self._table = names.index("page_table") if "page_table" in names else -1
        self._offsets_q = names.index("cu_seqlens_q") if "cu_seqlens_q" in names else -1
        self._counts = []  # of elements: so many more than requests, times so many; 0 = it is looked at apart
        for name in names:
            times = problem.heads_q if getattr(params, name).dim() == 2 else 1
            self._counts.append((_MORE.get(name, 0), 0 if name == "page_table" else times))
        self._others = names

    def add(self, problem: Problem, buffers: Buffers, planner: Planner, loaded: Mapping[str, Loaded]) -> None:
        """Be ready for calls that the same kernels compute as this one."""
        phases = tuple([phase for phase in loaded if phase != "combine"])
        kept = self._fitted.get(phases)
        if kept is not None and problem.len_k in kept.lengths:
            return
        lse = ("lse",) if self._with_lse else ()
        partial = (WORKSPACE,) if "decode" in loaded else ()
        pointers = ("out", *lse, *self._others, *partial, "")
        self._fitted[phases] = Fitted(problem, buffers, planner, self._gpu, loaded, pointers)

    def launch(self, params: Params, tensors: tuple[torch.Tensor, ...]) -> Result:
        """Enqueue on torch's current stream; the output, and the log-sum-exp if it is returned.

        Raises:
            Elsewhere: it is not for here.
        """
        # Note: long and plain on purpose. Half a microsecond here is one on the hosts of GPUs, and a call for each of
        # these steps made them twice as slow.
        looks, at = self._looks, self._twin_at
        compared = tensors[:at] + tensors[at + 1 :] if at else tensors
        for look in looks.recent:
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
        if (at_q | at_k | at_v) % TMA_BYTES or not (at_q and at_k and at_v):
            raise Elsewhere
        if not alike and (extent_v[1] != keys or extent_v[3] != outer):
            raise Elsewhere
        pointers: list[int] = []
        ragged_q = self._ragged_q
        if self._only_offsets:
            offsets = tensors[3]
            pointer, requests, total, width = offsets.data_ptr(), offsets.numel() - 1, keys, 0
            if not pointer or requests < 1:
                raise Elsewhere
            pointers = [pointer, pointer]
            most_q, most_k = params.max_seqlen_q, params.max_seqlen_k
            len_q = rows if most_q is None else _cut(most_q, rows, known=False)
            len_k = keys if most_k is None else _cut(most_k, keys, known=False)
        elif self._measured:
            others = tensors[3 : self._others_end]
            requests = others[self._offsets_q].numel() - 1 if ragged_q else batch
            pointers = self._pointers(others, requests)
            len_q, len_k, total, width = self._lengths(params, others, rows, requests, keys, outer)
        else:
            requests, len_q, len_k, total, width = batch, rows, keys, batch * keys, 0
            if outer != batch:
                raise Elsewhere
        fitted, cut = self._fitted.get(self._phases(len_q, len_k)), None
        if fitted is None or len_k not in fitted.lengths:
            raise Elsewhere
        if fitted.cut is not None:
            cut = fitted.cut(requests, len_q, len_k)
            if cut.rounds > 1:
                raise Elsewhere
        ordinal, row_out, columns, lse = self._ordinal, self._row_out, self._head_dim_v, None
        if self._makes_out:
            strides = (row_out, columns, 1) if ragged_q else (rows * row_out, row_out, columns, 1)
            out = memory.empty((*shape_q[:-1], columns), strides, self._out_dtype, ordinal)
        else:
            out, lse = self._outputs(q, (*shape_q[:-1], columns), tensors)
        at_out = out.data_ptr()
        addresses = [at_out, *pointers] if lse is None else [at_out, lse.data_ptr(), *pointers]
        if cut is not None:
            partial, floats = 0, cut.workspace_floats
            if floats:
                new = self._plain
                workspace = memory.empty((floats,), _ONE, _FLOAT, ordinal) if new else q.new_empty(floats, dtype=_FLOAT)
                partial = workspace.data_ptr()
            addresses.append(partial)
        stream = streams.current(ordinal)
        counter = self._counter if stream == streams.LEGACY else 0
        if not counter:
            counter = self._find_counter(stream)
        addresses.append(counter)
        threshold = 0.0
        if self._host_threshold:
            given = params.skip_softmax_threshold
            threshold = given if type(given) is float and 0.0 <= given <= 1.0 else threshold_value(params)
        sizes = (extent_q, extent_k, extent_v, requests, len_q, len_k, total, width)
        fitted.launch(sizes, cut, (at_q, at_k, at_v, at_out), addresses, stream, threshold)
        if not self._return_lse:
            return out
        assert lse is not None
        return out, lse

    def _outputs(
        self, q: torch.Tensor, shape: tuple[int, ...], tensors: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output, and the log-sum-exp if it is wanted: given, or made."""
        lse = None
        if self._given_out:
            out = self._check(tensors, self._others_end, shape, TMA_BYTES)
        else:
            out = self._new(q, shape, self._out_dtype)
        if self._given_lse:
            lse = self._check(tensors, len(tensors) - 1, shape[:-1], 1)
        elif self._with_lse:
            lse = self._new(q, shape[:-1], _FLOAT)
        return out, lse

    def _new(self, q: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if not self._plain:
            return q.new_empty(shape, dtype=dtype)
        strides = [1]
        for size in shape[:0:-1]:
            strides.append(strides[-1] * size)
        return memory.empty(shape, tuple(strides[::-1]), dtype, self._ordinal)

    def _check(self, tensors: Sequence[torch.Tensor], at: int, shape: tuple[int, ...], step: int) -> torch.Tensor:
        """A given output: it is as one that is made here would be, and apart from all others."""
        out = tensors[at]
        start = out.data_ptr()
        if out.shape != shape or not out.is_contiguous() or start % step or not start:
            raise Elsewhere
        end = start + out.numel() * out.element_size()
        for index, tensor in enumerate(tensors):
            other = tensor.data_ptr()
            if other < end and start < other + span_bytes(tensor) and index != at:
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
