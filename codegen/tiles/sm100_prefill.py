"""Prefill tiles of SM100: row groups of 128 rows, each with a softmax warpgroup and its own part of tensor memory.

Budgeted on paper against 227 KB of shared memory, 512 columns of tensor memory and 65536 registers per CTA; nothing
here has run on a Blackwell GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..spec import KernelSpec
from .common import ELEMENT_BYTES, Tile

GROUP_ROWS = 128  # one tcgen05 product of one CTA (m128): a row per lane of tensor memory, and per softmax thread
_BARRIER_BYTES = 1024  # barriers, votes and work items
_EXCHANGE_BYTES = 2048  # softmax to correction: two floats for each row of two groups
_TMEM_COLUMNS = 512  # of an SM


@dataclass(frozen=True)
class Sm100PrefillTile(Tile):
    """A prefill tile of SM100.

    The warpgroups: softmax of each row group, correction, and four warps that load and issue.

    Registers: a softmax thread holds a row of 128 scores and what it makes of them; correction takes O in pieces; the
    single warps count, and follow pages. The four warpgroups of two groups get 512 between them. Of the ways to share
    those, with 184, 88 and 56 no kernel of the default set spills (with 80 for correction or 48 for the rest some do).
    """

    softmax_regs: int = 184
    correction_regs: int = 88
    other_regs: int = 56
    # Whether products that one thread issues are taken to execute in that order, as other published kernels do. The
    # ISA promises it only for equal shapes and accumulators; False waits for P.V before S is overwritten.
    ordered_products: bool = True

    @property
    def group_rows(self) -> int:
        """A softmax warpgroup's."""
        return GROUP_ROWS

    @property
    def registers(self) -> tuple[int, ...]:
        """Softmax warpgroups, correction, the others."""
        return (*[self.softmax_regs] * self.consumers, self.correction_regs, self.other_regs)

    @property
    def o_rows(self) -> int:
        """The groups store through one buffer in turn."""
        return GROUP_ROWS

    @property
    def barrier_bytes(self) -> int:
        """Barriers, votes and work items, and what softmax tells correction."""
        return _BARRIER_BYTES + _EXCHANGE_BYTES

    def traits(self, spec: KernelSpec) -> Mapping[str, int | bool]:
        """Registers per thread of each role, tensor memory, and what is taken for granted about the order."""
        return {
            "kSoftmaxRegs": self.softmax_regs,
            "kCorrectionRegs": self.correction_regs,
            "kOtherRegs": self.other_regs,
            "kTmemColumns": self.tmem_columns(spec),
            "kOrderedProducts": self.ordered_products,
        }

    def tmem_columns(self, spec: KernelSpec) -> int:
        """A tile of S, which P overlays, and one of O for each group, 32 bits a column; rounded to a power of two."""
        needed = self.consumers * (self.tile_n + spec.head_dim_v)
        assert needed <= _TMEM_COLUMNS, (spec.name, needed)
        return 1 << (needed - 1).bit_length()


# Two groups with a 256-column output would need 768 columns of tensor memory. The three warpgroups that one group takes
# have 504 registers; ptxas spills with 192 for softmax.
_ONE_GROUP = Sm100PrefillTile(
    tile_m=128,
    tile_n=128,
    stages=1,
    stages_v=1,
    separate_o=False,
    softmax_regs=232,
    correction_regs=144,
    other_regs=104,
)
# (head_dim, head_dim_v) -> tile, by bytes per element. K and V get as many slots as fit: what comes late shows first
# where tiles are skipped.
_TILES = {
    2: {
        (64, 64): Sm100PrefillTile(tile_m=256, tile_n=128, stages=4, stages_v=4, separate_o=True),
        (128, 128): Sm100PrefillTile(tile_m=256, tile_n=128, stages=2, stages_v=2, separate_o=True),
        # 96 KB of Q: O has to share its buffer, and V gets one slot.
        (192, 128): Sm100PrefillTile(tile_m=256, tile_n=128, stages=2, stages_v=1, separate_o=False),
        (256, 256): replace(_ONE_GROUP, stages=1, stages_v=1),
    },
    1: {
        (64, 64): Sm100PrefillTile(tile_m=256, tile_n=128, stages=4, stages_v=4, separate_o=True),
        (128, 128): Sm100PrefillTile(tile_m=256, tile_n=128, stages=4, stages_v=4, separate_o=True),
        (192, 128): Sm100PrefillTile(tile_m=256, tile_n=128, stages=3, stages_v=3, separate_o=False),
        # O is written in 16 bits, twice as wide as Q: it cannot share Q's buffer.
        (256, 256): replace(_ONE_GROUP, stages=2, stages_v=2, separate_o=True),
    },
}


def tile_of(spec: KernelSpec) -> Sm100PrefillTile:
    """The tile of a kernel; ``KeyError`` for head dims that the matrix does not hold."""
    return _TILES[ELEMENT_BYTES[spec.dtype]][spec.head_dim, spec.head_dim_v]
