"""The kernels of a launch that compute its decoded requests: how the work is cut, and what the workspace holds.

Where a CTA stops and where results are merged never shows in the bits (:mod:`skimattn.codegen.tiles.split`), so both
follow from what the host knows of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

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
)

from .._call.problem import Problem
from .extent import extent_of
from .plan import WARP_THREADS, TensorMapSpec, Value

WORKSPACE_BYTES = 256 << 20  # at most, whatever the batch; what does not fit is computed in rounds
_PADDING = 4  # floats of a part's row beyond its columns: maximum, sum, and up to whole 16 bytes
_COMBINE_CTAS = 8  # per multiprocessor at most, each of which merges rows in turn
_COMBINE_WARPS = 8  # of a CTA; where parts are branches, each merges rows of its own
# What one leaf takes of one CTA is the unit of the estimates that decide over the cut, measured on an H100: as long as
# this part of the CTAs works, memory is busy; an item costs so much besides its leaves.
_BUSY, _ITEM = 0.5, 0.05
# What both phases are told about whose a request is.
RULE: dict[str, Value] = {
    "decode_always_rows": GROUP_ROWS,
    "decode_most_rows": MAX_GROUPS * GROUP_ROWS,
    "decode_keys_per_row": KEYS_PER_ROW,
}
_RULE_OF_LATENT = RULE | {"decode_always_rows": MLA_MOST_ROWS, "decode_most_rows": MLA_MOST_ROWS}


def rule_of(problem: Problem) -> dict[str, Value]:
    """What decode kernels are told about whose a request is: MLA's take all."""
    return _RULE_OF_LATENT if problem.latent else RULE


@dataclass(frozen=True)
class Cut:
    """How a batch is cut into parts: branches where ``whole_branches``, else leaves.

    ``rows`` bounds the packed rows of a (request, kv head), ``groups`` and ``part_rows`` their groups and a group's
    rows; there is room for ``parts`` of each group. ``rounds`` of ``requests`` each share the workspace.
    """

    rows: int
    groups: int
    part_rows: int
    whole_branches: bool
    parts: int
    requests: int
    rounds: int
    ctas: int
    workspace_floats: int


def cut_of(problem: Problem, kernel: Kernel, sm_count: int) -> Cut:
    """The cut of a call's decoded requests by a decode kernel, on a device of ``sm_count`` multiprocessors."""
    rule = rule_of(problem)
    rows = min(problem.len_q * (problem.heads_q // problem.heads_kv), int(rule["decode_most_rows"]))
    groups, part_rows = -(-rows // GROUP_ROWS), min(rows, GROUP_ROWS)
    pairs, most_ctas = problem.heads_kv * groups, sm_count * kernel.ctas_per_sm
    row_floats = kernel.head_dim_v + _PADDING
    state_bytes = part_rows * row_floats * 4
    columns = kernel.head_dim + (0 if problem.latent else kernel.head_dim_v)
    key_bytes = columns * ELEMENT_BYTES[kernel.dtype]
    leaf_keys = max(MIN_LEAF_KEYS[kernel.head_dim], problem.len_k // MAX_LEAVES)

    def cost(leaves: int) -> float:
        """The time of the slowest CTA if parts have so many leaves, and of writing and reading partial results."""
        parts = _most_parts(problem, kernel, leaves)
        waves = problem.batch * pairs * parts / most_ctas
        busy = waves // 1 + (max(waves % 1, _BUSY) if waves % 1 else 0)
        results = 2 * state_bytes / (leaf_keys * key_bytes) if parts > 1 else 0.0
        return busy * min(leaves, _most_parts(problem, kernel, 1)) + waves * (results + _ITEM)

    leaves = min((BRANCH_LEAVES, 1), key=cost)
    parts = _most_parts(problem, kernel, leaves)
    # MLA merges leaves there too.
    uses_workspace = parts > 1 or (problem.latent and _most_parts(problem, kernel, 1) > 1)
    requests = max(1, min(problem.batch, WORKSPACE_BYTES // (parts * pairs * state_bytes)))
    return Cut(
        rows=rows,
        groups=groups,
        part_rows=part_rows,
        whole_branches=leaves > 1,
        parts=parts,
        requests=requests,
        rounds=-(-problem.batch // requests),
        ctas=min(most_ctas, requests * pairs * parts),
        workspace_floats=requests * pairs * parts * part_rows * row_floats if uses_workspace else 0,
    )


def _most_parts(problem: Problem, kernel: Kernel, of_leaves: int) -> int:
    """The most parts of ``of_leaves`` leaves of a request."""
    tile_n, starts_anywhere = kernel.tile_n, problem.mask in ("window", "chunked")
    tiles = max(1, -(-problem.len_k // tile_n))
    if starts_anywhere:
        left, right = problem.window
        unlimited = left < 0 or (right < 0 and problem.mask == "window")
        keys = problem.len_k if unlimited else left + max(right, 0) + problem.len_q
        if problem.chunk_size:
            keys = min(keys, problem.chunk_size + problem.len_q)
        tiles = min(tiles, keys // tile_n + 2)
    leaves = min(MAX_LEAVES, -(-tiles // (MIN_LEAF_KEYS[kernel.head_dim] // tile_n)))
    return -(-leaves // of_leaves) + (1 if starts_anywhere else 0)


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
        scalars: what prefill would be told of the same call.
        maps: those of K and V.
        cut: from :func:`cut_of`.
        sm_count: multiprocessors of the device.
    """
    box_heads, box_rows = q_box(problem)
    common: dict[str, Value] = {
        **scalars,
        **rule_of(problem),
        "requests_in_l2": min(WARP_THREADS, problem.batch),
        "whole_branches": int(cut.whole_branches),
        "parts": cut.parts,
        "groups": cut.groups,
        "part_rows": cut.part_rows,
        "q_box_heads": box_heads,
        "q_box_rows": box_rows,
        "mask": BY_NAME["mask"].encode(problem.mask),
    }
    maps = {"tma_q": _map_of_q(problem, kernel, box_heads, box_rows), **maps}
    for index in range(cut.rounds):
        first = index * cut.requests
        requests = min(cut.requests, problem.batch - first)
        sized = {**common, "first_request": first, "round_requests": requests}
        yield kernel, maps, sized, cut.ctas
        if cut.parts > 1:
            rows = requests * problem.heads_kv * cut.rows
            ctas = -(-rows // _COMBINE_WARPS) if cut.whole_branches else rows
            yield combine, {}, sized, min(_COMBINE_CTAS * sm_count, ctas)


def q_box(problem: Problem) -> tuple[int, int]:
    """Heads and rows of one copy of Q: as many packed rows as divide a group, or all there are."""
    heads = problem.heads_q // problem.heads_kv
    if heads * problem.len_q <= GROUP_ROWS:
        return heads, problem.len_q
    return (heads, GROUP_ROWS // heads) if GROUP_ROWS % heads == 0 else (gcd(heads, GROUP_ROWS), 1)


def _map_of_q(problem: Problem, kernel: Kernel, heads: int, rows: int) -> TensorMapSpec:
    """Q with heads before rows, so that a copy brings packed rows."""
    q: torch.Tensor = problem.params.q
    extent = extent_of(q.shape, q.stride(), ELEMENT_BYTES[kernel.dtype])
    (columns, all_rows, all_heads, outer), (row, head, request) = extent[:4], extent[4:]
    box = (panel_columns(kernel.dtype), heads, rows, 1)
    return TensorMapSpec(q.data_ptr(), kernel.dtype, (columns, all_heads, all_rows, outer), (head, row, request), box)
