"""The kernel of a launch that transposes V for prefill: where it puts it, and which requests share the workspace."""

from __future__ import annotations

from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles.common import PANEL_BYTES
from skimattn.codegen.tiles.workspace import Places, places_of_ragged, places_of_requests, transposed_rows

from .._call.problem import Problem
from .plan import TensorMapSpec


def places_of(problem: Problem, kernel: Kernel) -> Places:
    """How V of a call lies in the workspace of ``kernel``, which transposes it."""
    rows = transposed_rows(kernel.head_dim_v, problem.head_dim_v, kernel.tile_n)
    batch, heads, tile_n = problem.batch, problem.heads_kv, kernel.tile_n
    if problem.params.cu_seqlens_k is not None:
        return places_of_ragged(batch, problem.keys, heads, rows, tile_n)
    return places_of_requests(batch, problem.len_k, heads, rows, tile_n)


def map_of_places(places: Places, kernel: Kernel, address: int) -> TensorMapSpec:
    """The map over the workspace: a copy brings a tile of keys of all the kernel's columns."""
    row = places.tiles * PANEL_BYTES
    head = row * places.rows
    box = (PANEL_BYTES, kernel.head_dim_v * kernel.tile_n // PANEL_BYTES, 1, 1)
    dims = (row, places.rows, places.heads, places.places)
    return TensorMapSpec(address, kernel.dtype, dims, (row, head, head * places.heads), box)
