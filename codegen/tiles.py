"""Tile shapes, stages, warps and registers per kernel, and the memory they need.

A change of ``tile_n`` or of the rows that decide together changes which tiles skip, so both are part of the meaning of
a kernel and stand in its metadata.
"""

from __future__ import annotations

from . import tiles_sm90, tiles_sm100
from .spec import KernelSpec

Tile = tiles_sm90.Tile | tiles_sm100.Tile


def tile_of(spec: KernelSpec) -> Tile:
    """The tile of a kernel; ``KeyError`` for head dims that the matrix does not hold."""
    return tiles_sm90.tile_of(spec) if spec.arch == "sm90" else tiles_sm100.tile_of(spec)


def order_of(spec: KernelSpec) -> str:
    """In which order a row group visits its key tiles.

    ``sink_first``: tile 0, then from the last visible one down; attention sinks raise the running maximum at once, so
    more of what follows can be skipped. ``reverse``: from the last down to the first. All groups of a CTA walk its
    tiles in one order, which is each group's own only if they start at the same tile: where rows see the first key.
    """
    return "sink_first" if spec.mask in ("full", "causal", "custom") else "reverse"


def smem_bytes(spec: KernelSpec) -> int:
    """Dynamic shared memory of a kernel; ``storage.cuh`` asserts that the size of its storage agrees."""
    return tile_of(spec).smem_bytes(spec)


def tmem_columns(spec: KernelSpec) -> int:
    """Tensor memory columns that a CTA allocates; 0 on architectures without tensor memory."""
    return tile_of(spec).tmem_columns(spec)
