"""Tile shapes, stages, warps and registers per kernel, and the memory they need.

A change of ``tile_n`` or of the rows that decide together changes which tiles skip, so both are part of the meaning of
a kernel and stand in its metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..spec import KernelSpec
from . import combine, sm90_decode, sm90_mla, sm90_prefill, sm90_transpose, sm100_decode, sm100_prefill
from .common import Tile

_BY_ARCH_AND_PHASE: Mapping[tuple[str, str], Callable[[KernelSpec], Tile]] = {
    ("sm90", "prefill"): sm90_prefill.tile_of,
    ("sm90", "decode"): sm90_decode.tile_of,
    ("sm90", "combine"): combine.tile_of,
    ("sm90", "mla"): sm90_mla.tile_of,
    ("sm90", "transpose"): sm90_transpose.tile_of,
    ("sm100", "prefill"): sm100_prefill.tile_of,
    ("sm100", "decode"): sm100_decode.tile_of,
    ("sm100", "combine"): combine.tile_of,
}


def tile_of(spec: KernelSpec) -> Tile:
    """The tile of a kernel; ``KeyError`` for what the matrix does not hold."""
    return _BY_ARCH_AND_PHASE[spec.arch, spec.phase](spec)


def order_of(spec: KernelSpec) -> str:
    """In which order a row group visits its key tiles.

    ``sink_first``: tile 0, then from the last visible one down; attention sinks raise the running maximum at once, so
    more of what follows can be skipped. ``reverse``: from the last down to the first. All groups of a CTA walk its
    tiles in one order, which is each group's own only if they start at the same tile: where rows see the first key.
    Decode visits the tiles of each leaf in ``reverse``, since every leaf starts from a maximum anyway.
    """
    if spec.phase != "prefill":
        return "reverse"
    return "sink_first" if spec.mask in ("full", "causal", "custom") else "reverse"
