"""The kernels of a launch that compute its decoded requests: how the work is cut, and what the workspace holds.

Where a CTA stops and where results are merged never shows in the bits (:mod:`skimattn.codegen.tiles.split`), so both
follow from what the host knows of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
from skimattn.codegen.features import BY_NAME
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles.common import ELEMENT_BYTES, panel_columns
from skimattn.codegen.tiles.split import (
    BRANCH_LEAVES,
    GROUP_ROWS,
    KEYS_PER_ROW,
    MAX_GROUPS,
    MAX_LEAVES,
    MIN_LEAF_KEYS,
    MLA_MOST_ROWS,
    TWIG_LEAVES,
)
from skimattn.codegen.tiles.workspace import WORKSPACE_BYTES

from .._call.problem import Problem
from .extent import extent_of
from .plan import WARP_THREADS, TensorMapSpec, Value

PART_LEAVES = (BRANCH_LEAVES, TWIG_LEAVES, 1)  # that a CTA may compute
_MOST_ROWS = MAX_GROUPS * GROUP_ROWS  # packed rows of a request
_COMBINE_CTAS = 8  # per multiprocessor at most, each of which merges rows in turn
_PADDING = 4  # floats of a part's row beyond its columns: maximum, sum, and up to whole 16 bytes
_COMBINE_WARPS = 8  # of a CTA; where there are many rows, each merges rows of its own
# What one leaf takes of a CTA while all work is the unit of the estimates that decide over the cut. From an H100:
# if fewer than this part of the CTAs work, memory is not busy; an item costs so much besides its leaves.
_BUSY, _ITEM = 0.35, 0.12
_FEW_PARTS = 8  # of a row, which one warp merges
_NEVER = float("inf")
_KEPT = 1024  # cuts
_ANY_KEYS = -(1 << 31)
# What decode is told where no prefill kernel exists, so that all requests are its own.
ALL_REQUESTS: dict[str, Value] = {"decode_more_keys": _ANY_KEYS, "decode_always_rows": _MOST_ROWS}
# The same of MLA, whose requests have more.
ALL_LATENT: dict[str, Value] = {
    "decode_more_keys": _ANY_KEYS,
    "decode_always_rows": MLA_MOST_ROWS,
    "decode_most_rows": MLA_MOST_ROWS,
}


def rule_of(problem: Problem) -> dict[str, Value]:
    """What both phases are told about whose a request is: :func:`split.decodes`."""
    return {
        "decode_more_keys": _ANY_KEYS if problem.has_cache else 1,
        "decode_always_rows": GROUP_ROWS,
        "decode_most_rows": _MOST_ROWS,
        "decode_keys_per_row": KEYS_PER_ROW,
    }


class Cut(NamedTuple):
    """How a batch is cut into parts of ``part_leaves`` leaves.

    ``rows`` bounds the packed rows of a (request, kv head), ``groups`` and ``part_rows`` their groups and a group's
    rows; there is room for ``parts`` of each group. ``rounds`` of ``requests`` each share the workspace. A copy of Q
    brings ``q_box_heads`` and ``q_box_rows``.
    """

    rows: int
    groups: int
    part_rows: int
    part_leaves: int
    parts: int
    requests: int
    rounds: int
    ctas: int
    workspace_floats: int
    q_box_heads: int
    q_box_rows: int


class Cutter:
    """Cuts the batches of calls that differ in sizes only. It remembers the last cuts, of which there are not many:
    they depend on the number of leaves, and hardly on that of keys.
    """

    def __init__(self, problem: Problem, kernel: Kernel, sm_count: int) -> None:
        """``problem`` is one of the calls, ``kernel`` decodes them on a device of ``sm_count`` multiprocessors."""
        self._heads_kv, self._per_kv = problem.heads_kv, problem.heads_q // problem.heads_kv
        self._most_rows = MLA_MOST_ROWS if problem.latent else _MOST_ROWS
        # MLA merges leaves in the workspace, where a part has one place.
        self._part_leaves = [of for of in PART_LEAVES if of <= TWIG_LEAVES] if problem.latent else PART_LEAVES
        self._busy = 1.0 if problem.latent else _BUSY  # products take MLA's time, and every CTA has its own
        self._all_rows = -(-self._most_rows // self._per_kv)  # query rows, of which more make no difference
        self._tile_n, self._leaf_keys = kernel.tile_n, MIN_LEAF_KEYS[kernel.head_dim]
        self._leaf_tiles, self._least_of_long = self._leaf_keys // kernel.tile_n, self._leaf_keys * MAX_LEAVES
        columns = kernel.head_dim + (0 if problem.latent else kernel.head_dim_v)
        self._key_bytes = columns * ELEMENT_BYTES[kernel.dtype]
        self._row_floats, self._most_ctas = kernel.head_dim_v + _PADDING, sm_count * kernel.ctas_per_sm
        self._starts_anywhere = problem.mask not in ("full", "causal", "custom")
        self._window_keys = _window_keys(problem)
        self._cut_leaves = lru_cache(_KEPT)(self._cut_leaves_)

    def cut(self, batch: int, len_q: int, len_k: int) -> Cut:
        """The cut of a batch whose requests have so many rows and keys at most."""
        # Note: no calls of min and max, here and below: every launch in new sizes comes here.
        rows, leaves = len_q if len_q < self._all_rows else self._all_rows, self._leaves(len_q, len_k)
        # A hint may say that no request has rows, of a batch that has some.
        return self._cut_leaves(batch, rows or 1, leaves, len_k // MAX_LEAVES if len_k > self._least_of_long else 0)

    def _leaves(self, len_q: int, len_k: int) -> int:
        """The most leaves of a request, if the first one starts at a border."""
        tiles = -(-len_k // self._tile_n) or 1
        if self._window_keys is not None:
            seen = (self._window_keys + len_q) // self._tile_n + 2
            tiles = seen if seen < tiles else tiles
        leaves = -(-tiles // self._leaf_tiles)
        return leaves if leaves < MAX_LEAVES else MAX_LEAVES

    def _parts(self, leaves: int, of_leaves: int) -> int:
        """The most parts of a request, of so many leaves each."""
        return -(-leaves // of_leaves) + self._starts_anywhere

    def _cut_leaves_(self, batch: int, len_q: int, leaves: int, leaf_keys: int) -> Cut:
        """The same by leaves; ``leaf_keys`` = how many one has at least, where that is more than ever."""
        rows, most_ctas = len_q * self._per_kv, self._most_ctas
        rows = rows if rows < self._most_rows else self._most_rows
        pairs, part_rows = self._heads_kv * -(-rows // GROUP_ROWS), rows if rows < GROUP_ROWS else GROUP_ROWS
        results = 2 * part_rows * self._row_floats * 4 / ((leaf_keys or self._leaf_keys) * self._key_bytes)
        least, part_leaves, parts = _NEVER, 1, 1
        for its_leaves in self._part_leaves:
            # The time of the slowest CTA if parts have so many leaves, and of writing and reading partial results.
            its_parts = self._parts(leaves, its_leaves)
            waves, items = divmod(batch * pairs * its_parts, most_ctas)
            last = items / most_ctas
            busy = waves + (last if last > self._busy or not last else self._busy)
            cost = busy * self._parts(leaves, 1) / its_parts
            # Requests that start anywhere are cut unevenly: some part is full, and its CTA has what it can use at most.
            full = self._busy * (its_leaves if its_leaves < leaves else leaves)
            cost = full if full > cost else cost
            cost += (waves + last) * (results + _ITEM if its_parts > 1 else _ITEM)
            if cost < least:
                least, part_leaves, parts = cost, its_leaves, its_parts
        state_floats = part_rows * self._row_floats
        fitting = WORKSPACE_BYTES // (parts * pairs * state_floats * 4) or 1
        requests = batch if batch < fitting else fitting
        items = requests * pairs * parts
        return Cut(
            rows,
            -(-rows // GROUP_ROWS),
            part_rows,
            part_leaves,
            parts,
            requests,
            -(-batch // requests),
            items if items < most_ctas else most_ctas,
            items * state_floats,
            *_q_box(self._per_kv, len_q),
        )


def _window_keys(problem: Problem) -> int | None:
    """The keys that requests see, but for as many more as they have rows; None = all of them."""
    if problem.mask not in ("window", "chunked"):
        return None
    left, right = problem.window
    keys = None if left < 0 or (right < 0 and problem.mask == "window") else left + max(right, 0)
    if problem.chunk_size:
        keys = problem.chunk_size if keys is None else min(keys, problem.chunk_size)
    return keys


def _q_box(heads: int, len_q: int) -> tuple[int, int]:
    """Heads and rows of one copy of Q, with so many heads for each of K: as many packed rows as divide a group, or all
    there are.
    """
    if heads * len_q <= GROUP_ROWS:
        return heads, len_q
    return (heads, GROUP_ROWS // heads) if GROUP_ROWS % heads == 0 else (gcd(heads, GROUP_ROWS), 1)


def plan_decode(
    problem: Problem,
    kernel: Kernel,
    combine: Kernel,
    scalars: dict[str, Value],
    maps: dict[str, TensorMapSpec],
    cut: Cut,
    sm_count: int,
) -> Iterator[tuple[Kernel, dict[str, TensorMapSpec], dict[str, Value], int]]:
    """Kernel, maps, scalars and grid of each launch, in the order of the stream.

    Args:
        problem: the call.
        kernel: computes parts.
        combine: merges them.
        scalars: what prefill would be told of the same call, and another rule than :func:`rule_of`.
        maps: those of K and V.
        cut: of the call.
        sm_count: multiprocessors of the device.
    """
    common: dict[str, Value] = {
        **rule_of(problem),
        **scalars,
        "heads_in_l2": problem.heads_kv,  # no two CTAs read the same keys at any time
        "requests_in_l2": min(WARP_THREADS, problem.batch),
        "part_shift": cut.part_leaves.bit_length() - 1,
        "qheads_per_kv": problem.heads_q // problem.heads_kv,
        "parts": cut.parts,
        "groups": cut.groups,
        "part_rows": cut.part_rows,
        "q_box_heads": cut.q_box_heads,
        "q_box_rows": cut.q_box_rows,
        "mask": BY_NAME["mask"].encode(problem.mask),
    }
    maps = {"tma_q": _map_of_q(problem, kernel, cut), **maps}
    for index in range(cut.rounds):
        first = index * cut.requests
        requests = min(cut.requests, problem.batch - first)
        warp_rows, ctas = combining(requests * problem.heads_kv * cut.rows, cut.parts, sm_count)
        sized = {**common, "first_request": first, "round_requests": requests, "warp_rows": warp_rows}
        yield kernel, maps, sized, cut.ctas
        if cut.parts > 1:
            yield combine, {}, sized, ctas


def combining(rows: int, parts: int, sm_count: int) -> tuple[int, int]:
    """Whether a warp merges a row, or a whole CTA, and how many CTAs merge so many rows of ``parts`` parts at most."""
    most = _COMBINE_CTAS * sm_count
    warp_rows = parts <= _FEW_PARTS
    ctas = -(-rows // _COMBINE_WARPS) if warp_rows else rows
    return int(warp_rows), ctas if ctas < most else most


def _map_of_q(problem: Problem, kernel: Kernel, cut: Cut) -> TensorMapSpec:
    """Q with heads before rows, so that a copy brings packed rows."""
    q: torch.Tensor = problem.params.q
    extent = extent_of(q.shape, q.stride(), ELEMENT_BYTES[kernel.dtype])
    (columns, all_rows, all_heads, outer), (row, head, request) = extent[:4], extent[4:]
    box = (panel_columns(kernel.dtype), cut.q_box_heads, cut.q_box_rows, 1)
    return TensorMapSpec(q.data_ptr(), kernel.dtype, (columns, all_heads, all_rows, outer), (head, row, request), box)
