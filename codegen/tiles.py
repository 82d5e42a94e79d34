"""Tile shapes, stages, warps and registers per kernel, and the shared memory they need.

The rows were budgeted on paper (registers: 65536 per SM over all warpgroups; shared memory: 227 KB per
CTA) and measured on an H200 where ``bench/NOTES.md`` says so. A change of ``tile_n`` changes which
tiles skip, so it is part of the meaning of a kernel and stands in its metadata.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .spec import KernelSpec

GROUP_ROWS = 64  # rows that decide together: one warpgroup's wgmma tile (m64)
PANEL_COLUMNS = 64  # 16-bit columns in one 128-byte swizzled row
MAX_SMEM_BYTES = 232448  # 227 KB, the opt-in limit of one CTA on SM90
_SM_REGISTERS = 65536
_ALIGN = 1024  # of a 128-byte-swizzled TMA destination
_BARRIER_BYTES = 1024  # barriers and the two work items, padded to the swizzle's alignment


@dataclass(frozen=True)
class Tile:
    """Launch geometry of one kernel: ``tile_m`` query rows by ``tile_n`` keys, ``stages`` K, ``stages_v`` V slots."""

    tile_m: int
    tile_n: int
    stages: int
    stages_v: int
    separate_o: bool
    stages_q: int = 1
    q_register_steps: int = 0  # k16 steps of Q that stay in registers
    producer_regs: int = 40
    consumer_regs: int = 232

    def __post_init__(self) -> None:
        """setmaxnreg only moves registers that the CTA got at launch: asking for more would wait for ever."""
        at_launch = _SM_REGISTERS // self.threads // 8 * 8 * (self.consumers + 1)
        asked = self.producer_regs + self.consumers * self.consumer_regs
        assert asked <= at_launch, (self, at_launch)

    @property
    def consumers(self) -> int:
        """Warpgroups that compute, one per 64 rows."""
        return self.tile_m // GROUP_ROWS

    @property
    def threads(self) -> int:
        """Threads of a CTA: the consumers and one producer warpgroup."""
        return 128 * (self.consumers + 1)


# (head_dim, head_dim_v) -> tile. A third K slot where it fits: K is waited for in every tile, V only in kept ones.
_SM90_PREFILL = {
    (64, 64): Tile(tile_m=128, tile_n=128, stages=3, stages_v=2, separate_o=True),
    (128, 128): Tile(tile_m=128, tile_n=128, stages=3, stages_v=2, separate_o=True),
    # 48 KB of Q: O has to share its buffer.
    (192, 128): Tile(tile_m=128, tile_n=128, stages=2, stages_v=2, separate_o=False),
    (256, 256): Tile(tile_m=128, tile_n=64, stages=2, stages_v=2, separate_o=False),
}


def tile_of(spec: KernelSpec) -> Tile:
    """The tile of a kernel; ``KeyError`` for head dims that the matrix does not hold."""
    tile = _SM90_PREFILL[spec.head_dim, spec.head_dim_v]
    if spec.skip != "dense" and tile.separate_o:
        # Skipped tiles leave little to hide the next rows' arrival behind; bench/NOTES.md has the measurements.
        tile = replace(tile, stages=2, stages_q=2, q_register_steps=2)
    if (spec.paged or spec.mask in ("window", "chunked") or spec.head_dim == 192) and spec.head_dim_v <= 128:
        # The loaders need more than 40 registers to follow pages or two mask edges. A 256-column output leaves none.
        tile = replace(tile, producer_regs=56, consumer_regs=224)
    return tile


def order_of(spec: KernelSpec) -> str:
    """In which order a row group visits its key tiles.

    ``sink_first``: tile 0, then from the last visible one down; attention sinks raise the running maximum at once, so
    more of what follows can be skipped. ``reverse``: from the last down to the first. All groups of a CTA walk its
    tiles in one order, which is each group's own only if they start at the same tile: where rows see the first key.
    """
    return "sink_first" if spec.mask in ("full", "causal", "custom") else "reverse"


def smem_bytes(spec: KernelSpec) -> int:
    """Dynamic shared memory of a kernel; ``storage.cuh`` asserts that ``sizeof(SharedStorage)`` agrees."""
    tile = tile_of(spec)
    q = tile.stages_q * tile.tile_m * spec.head_dim * 2
    kv = tile.tile_n * (tile.stages * spec.head_dim + tile.stages_v * spec.head_dim_v) * 2
    o = tile.tile_m * spec.head_dim_v * 2 if tile.separate_o else 0
    total = q + kv + o + _BARRIER_BYTES
    assert total % _ALIGN == 0 and total <= MAX_SMEM_BYTES, (spec.name, total)
    return total
