"""What kernels are told of the sizes of a call, written where all else stands ready.

It is what :mod:`.plan` and :mod:`.decode` plan for those sizes.
"""

from __future__ import annotations

import torch
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.parameter_block import OFFSETS, TENSOR_MAP_BYTES
from skimattn.codegen.tiles.common import ELEMENT_BYTES, panel_columns

from .._call.problem import Problem
from .buffers import Buffers
from .decode import Cut, combining
from .extent import Extent
from .plan import WARP_THREADS, l2_sections
from .step import Block, Step, writer

_MAPS_OF_KEYS = slice(OFFSETS["tma_k"], OFFSETS["tma_v"] + TENSOR_MAP_BYTES)
_WHOLE = slice(None)
# fmt: off
_SIZED = (
    "out_stride_batch", "lse_stride_batch", "batch", "len_q", "len_k", "window_left", "page_table_stride",
    "heads_in_l2", "requests_in_l2",
)
_SIZED_OF_DECODE = (
    "first_request", "round_requests", "part_shift", "warp_rows", "parts", "groups", "part_rows", "q_box_heads",
    "q_box_rows",
)
# fmt: on
# Extents of q, k and v; requests, the most rows and keys of one, keys of all, entries of the page table for one.
Sizes = tuple[Extent, Extent, Extent, int, int, int, int, int]


class Common:
    """What kernels need to know of the form to be fitted to sizes."""

    def __init__(self, problem: Problem, buffers: Buffers, sm_count: int) -> None:
        self.sm_count, self.window_left = sm_count, problem.window[0]
        self.ragged, self.heads_q, self.heads_kv = problem.ragged, problem.heads_q, problem.heads_kv
        self.row_out = problem.heads_q * problem.head_dim_v
        self.row_lse = 0 if buffers.lse is None else problem.heads_q
        self.key_bytes = (problem.head_dim + problem.head_dim_v) * ELEMENT_BYTES[problem.dtype]
        # Outputs are contiguous here, whoever made them. These as in a Side.
        columns, size = problem.head_dim_v, buffers.out.element_size()
        self.dense = columns, problem.heads_q, self.row_out * size, columns * size, columns * size
        self.out_size = size
        self.out_like_q = problem.head_dim == columns and buffers.out.dtype == problem.params.q.dtype
        threshold, heads = problem.params.skip_softmax_threshold, problem.heads_q
        self.threshold_strides: tuple[int, ...] = ()
        if isinstance(threshold, torch.Tensor):
            self.threshold_strides = (heads, 1) if threshold.dim() == 2 else (1, 0)

    def settle(self, block: Block) -> None:
        """Write what is the same for all calls but need not be so in the one that the block was filled in for."""
        writer(block.memory, "out_stride_row", "out_stride_head")(self.row_out, self.dense[0])
        if self.row_lse:
            writer(block.memory, "lse_stride_row", "lse_stride_head")(self.row_lse, 1)
        if self.threshold_strides:
            writer(block.memory, "threshold_stride_batch", "threshold_stride_head")(*self.threshold_strides)


class _Maps:
    """The maps of a block over q, k and v, and out where prefill writes it. Most differ from those before: of decode
    steps, only rows do, if anything.

    Maps are of the right type and box when they come here, and their address is written later.
    """

    def __init__(self, form: Common, block: Block) -> None:
        self._form = form
        self.to_q, self._to_k, self._to_v, self._to_o = (block.maps[f"tma_{x}"] for x in "qkvo")
        self.q: Extent | None = None  # that maps are of
        self._k: Extent | None = None
        self._v: Extent | None = None

    def fit_keys(self, address: int, extent_k: Extent, extent_v: Extent) -> None:
        """Those of K and V; ``address`` is one that they may have."""
        if extent_k == self._k and extent_v == self._v:
            return
        self._k = None  # until they are there
        self._to_k.rewrite(address, extent_k)
        if extent_v == extent_k:
            self._to_v.memory[_WHOLE] = self._to_k.memory
        else:
            self._to_v.rewrite(address, extent_v)
        self._k, self._v = extent_k, extent_v

    def fit_rows(self, address: int, extent_q: Extent, stride: int) -> None:
        """Those of Q and the output, whose requests lie so many elements apart."""
        self.q = None
        self.to_q.rewrite(address, extent_q)
        form, rows, batch = self._form, extent_q[1], extent_q[3]
        columns, heads, row, head, legal = form.dense
        request = stride * form.out_size if batch > 1 else legal
        extent_out = columns, rows, heads, batch, row if rows > 1 else legal, head, request
        if form.out_like_q and extent_out == extent_q:
            self._to_o.memory[_WHOLE] = self.to_q.memory
        else:
            self._to_o.rewrite(address, extent_out)
        self.q = extent_q


class PrefillFit:
    """The prefill kernel, in a block of its own. ``varlen_q`` = there may be requests that it does not compute."""

    def __init__(self, form: Common, kernel: Kernel, step: Step, block: Block, varlen_q: bool) -> None:
        self._form, self._config, self._tile_m, self._varlen_q = form, step.config, kernel.tile_m, varlen_q
        self._maps, self._write = _Maps(form, block), writer(block.memory, *_SIZED)

    def fit(self, address: int, sizes: Sizes) -> None:
        """Write what follows from sizes."""
        extent_q, extent_k, extent_v, requests, len_q, len_k, total, width = sizes
        form, maps, rows = self._form, self._maps, extent_q[1]
        stride, stride_lse = (0, 0) if form.ragged else (rows * form.row_out, rows * form.row_lse)
        if extent_q != maps.q:
            maps.fit_rows(address, extent_q, stride)
        maps.fit_keys(address, extent_k, extent_v)
        left = form.window_left if form.window_left < len_k else len_k
        sections = l2_sections(requests, form.heads_kv, total * form.key_bytes, self._varlen_q)
        self._write(stride, stride_lse, requests, len_q, len_k, left, width, *sections)
        tiles = -(-rows // self._tile_m)
        items = (tiles + requests if form.ragged else tiles * requests) * form.heads_q
        self._config.gridDimX = items if items < form.sm_count else form.sm_count


class DecodeFit:
    """The decode kernel and the one that combines its parts, which is told the same."""

    def __init__(
        self, form: Common, kernel: Kernel, steps: tuple[Step, Step], block: Block, prefill: Block | None
    ) -> None:
        """``prefill`` is the block of a prefill kernel whose maps of keys are the same, if there is one."""
        self._form, self._config, self._config_of_combine = form, *[step.config for step in steps]
        self._maps, self._columns, self._q_box = _Maps(form, block), panel_columns(kernel.dtype), (0, 0)
        self._copies = None if prefill is None else (block.memory[_MAPS_OF_KEYS], prefill.memory[_MAPS_OF_KEYS])
        self._write = writer(block.memory, *_SIZED, *_SIZED_OF_DECODE)

    def fit(self, address: int, sizes: Sizes, cut: Cut) -> None:
        """As that of prefill, which comes first."""
        extent_q, extent_k, extent_v, requests, len_q, len_k, _, width = sizes
        packed, groups, part_rows, leaves, parts, _, _, ctas, _, box_heads, box_rows = cut
        form, maps, rows = self._form, self._maps, extent_q[1]
        if extent_q != maps.q or (box_heads, box_rows) != self._q_box:
            maps.q = None  # until it is there
            maps.to_q.set_box((self._columns, box_heads, box_rows, 1))
            columns, _, heads, outer, row, head, request = extent_q
            maps.to_q.rewrite(address, (columns, heads, rows, outer, head, row, request))
            self._q_box, maps.q = (box_heads, box_rows), extent_q
        if self._copies is not None:
            to, source = self._copies
            to[_WHOLE] = source
        else:
            maps.fit_keys(address, extent_k, extent_v)
        stride, stride_lse = (0, 0) if form.ragged else (rows * form.row_out, rows * form.row_lse)
        left = form.window_left if form.window_left < len_k else len_k
        in_l2 = requests if requests < WARP_THREADS else WARP_THREADS
        merged_rows = requests * form.heads_kv * packed
        warp_rows, self._config_of_combine.gridDimX = combining(merged_rows, parts, form.sm_count)
        # fmt: off
        self._write(
            stride, stride_lse, requests, len_q, len_k, left, width, form.heads_kv, in_l2,
            0, requests, leaves.bit_length() - 1, warp_rows, parts, groups, part_rows, box_heads, box_rows,
        )
        # fmt: on
        self._config.gridDimX = ctas
