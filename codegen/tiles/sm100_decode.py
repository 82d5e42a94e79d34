"""Decode tiles of SM100: 64 packed rows to a CTA, with a softmax warpgroup, one for correction, and four single warps.

As on SM90 decode waits for memory: keys and values get all the shared memory there is. One CTA to an SM, whose loaders
run far ahead: two would need tensor memory (two tiles of scores each) and registers that there are not. Tiles of 128
keys leave twice the time that a tile's softmax takes until the next has come. Budgeted on paper; nothing here has run
on a Blackwell GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..spec import KernelSpec
from .common import ELEMENT_BYTES, Tile
from .split import GROUP_ROWS, split_traits

_BARRIER_BYTES = 2048  # barriers, votes and work items, and two floats a row from softmax to correction
_TMEM_COLUMNS = 512  # of an SM
_SCORE_SLOTS = 2


@dataclass(frozen=True)
class Sm100DecodeTile(Tile):
    """A decode tile of SM100.

    Registers: a softmax thread holds half a row of scores, correction half a row of the output that leaves are merged
    into. The three warpgroups have 504 between them.
    """

    softmax_regs: int = 144
    correction_regs: int = 256
    other_regs: int = 104

    @property
    def group_rows(self) -> int:
        """The CTA's."""
        return GROUP_ROWS

    @property
    def registers(self) -> tuple[int, ...]:
        """Softmax, correction, the others."""
        return (self.softmax_regs, self.correction_regs, self.other_regs)

    @property
    def o_rows(self) -> int:
        """O is stored from registers."""
        return 0

    @property
    def barrier_bytes(self) -> int:
        """Barriers, votes and work items, and what softmax tells correction."""
        return _BARRIER_BYTES

    def traits(self, spec: KernelSpec) -> Mapping[str, int | bool]:
        """Registers per thread of each role, tensor memory, and the constants of the split rule."""
        return {
            "kSoftmaxRegs": self.softmax_regs,
            "kCorrectionRegs": self.correction_regs,
            "kOtherRegs": self.other_regs,
            "kTmemColumns": self.tmem_columns(spec),
            **split_traits(self.tile_n, spec.head_dim),
        }

    def tmem_columns(self, spec: KernelSpec) -> int:
        """Two tiles of S, which P overlays, and O, 32 bits a column; rounded to a power of two."""
        needed = 1 << (_SCORE_SLOTS * self.tile_n + spec.head_dim_v - 1).bit_length()
        assert needed <= _TMEM_COLUMNS, (spec.name, needed)
        return needed


def _tile(tile_n: int, stages: int) -> Sm100DecodeTile:
    return Sm100DecodeTile(tile_m=GROUP_ROWS, tile_n=tile_n, stages=stages, stages_v=stages, separate_o=True)


# head_dim -> tile, by bytes per element. A dim has one tile_n, since one kernel merges what all of them leave.
_TILES = {
    2: {64: _tile(128, 6), 128: _tile(128, 3), 256: _tile(64, 3)},
    1: {64: _tile(128, 6), 128: _tile(128, 6), 256: _tile(64, 6)},
}


def tile_of(spec: KernelSpec) -> Sm100DecodeTile:
    """The tile of a kernel; ``KeyError`` for head dims that the matrix does not hold."""
    return _TILES[ELEMENT_BYTES[spec.dtype]][spec.head_dim]
