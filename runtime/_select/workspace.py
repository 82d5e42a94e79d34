"""What a call's V takes in the workspace where a kernel transposes it."""

from __future__ import annotations

from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles.workspace import (
    WORKSPACE_BYTES,
    Places,
    places_of_ragged,
    places_of_requests,
    transposed_rows,
)

from .._call.problem import Problem


def places_of(problem: Problem, kernel: Kernel) -> Places:
    """How V of a call lies in the workspace of ``kernel``, which transposes it."""
    rows = transposed_rows(kernel.head_dim_v, problem.head_dim_v, kernel.tile_n)
    batch, heads, tile_n = problem.batch, problem.heads_kv, kernel.tile_n
    if problem.params.cu_seqlens_k is not None:
        return places_of_ragged(batch, problem.keys, heads, rows, tile_n)
    return places_of_requests(batch, problem.len_k, heads, rows, tile_n)


def describe(problem: Problem, kernel: Kernel) -> str:
    """The same in words, with the bound."""
    places = places_of(problem, kernel)
    if problem.params.cu_seqlens_k is not None:
        bound = f"as much as V and {kernel.tile_n} keys of each request"
    else:
        bound = f"at most {WORKSPACE_BYTES >> 20} MiB, or one request's V where that is more"
    return f"{places.nbytes} bytes for V transposed, of {places.requests} requests at a time: {bound}"
