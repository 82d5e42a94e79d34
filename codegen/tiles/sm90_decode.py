"""Decode tiles of SM90: one consumer warpgroup of 64 packed rows, and one producer warpgroup.

Decode waits for memory, not for products: most of the 64 rows are empty where there are few query heads to a kv head,
and that costs nothing as long as keys and values arrive more slowly than they are worked on. Two CTAs share an SM
where they fit, so that one loads while the other waits for a vote; bench/NOTES.md has the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..spec import KernelSpec
from .common import MAX_SMEM_BYTES, Tile, row_bytes
from .split import BRANCH_LEAVES, GROUP_ROWS, MAX_LEAVES, MIN_LEAF_KEYS, TWIG_LEAVES

_BARRIER_BYTES = 1024  # barriers, votes and the two work items


@dataclass(frozen=True)
class Sm90DecodeTile(Tile):
    """A decode tile of SM90. ``q_in_registers``: Q is an operand from registers, and its slot free at once."""

    # Note: setmaxnreg.inc cannot lower, so a CTA alone on its SM, which has 256 at launch, keeps them.
    q_in_registers: bool = True
    producer_regs: int = 40
    consumer_regs: int = 216

    @property
    def group_rows(self) -> int:
        """The CTA's."""
        return GROUP_ROWS

    @property
    def registers(self) -> tuple[int, ...]:
        """The consumer's, then the producer's."""
        return (self.consumer_regs, self.producer_regs)

    @property
    def o_rows(self) -> int:
        """O is stored from registers."""
        return 0

    @property
    def barrier_bytes(self) -> int:
        """Barriers, votes and work items."""
        return _BARRIER_BYTES

    def smem_bytes(self, spec: KernelSpec) -> int:
        """As for all tiles, and O of the leaves before in float32, which takes Q's place where registers hold Q."""
        q, merged = self.tile_m * row_bytes(spec.head_dim, spec.dtype), self.tile_m * spec.head_dim_v * 4
        shared = min(q, merged) if self.q_in_registers else 0
        total = super().smem_bytes(spec) + merged - shared
        assert self.ctas_per_sm * total <= MAX_SMEM_BYTES, (spec.name, total)
        return total

    def traits(self, spec: KernelSpec) -> Mapping[str, int | bool]:
        """Registers per thread of both roles, where Q is, and the constants of the split rule."""
        return {
            "kProducerRegs": self.producer_regs,
            "kConsumerRegs": self.consumer_regs,
            "kQInRegisters": self.q_in_registers,
            **split_traits(self.tile_n, spec.head_dim),
        }


def split_traits(tile_n: int, head_dim: int) -> Mapping[str, int | bool]:
    """The split rule as C++ constants."""
    return {
        "kLeafShift": (MIN_LEAF_KEYS[head_dim] // tile_n).bit_length() - 1,
        "kMaxLeaves": MAX_LEAVES,
        "kTwigLeaves": TWIG_LEAVES,
        "kBranchLeaves": BRANCH_LEAVES,
    }


# head_dim -> tile. 16 KB of keys to a slot, or 32 KB where 256 columns leave one CTA to an SM anyway.
_TILES = {
    64: Sm90DecodeTile(tile_m=64, tile_n=128, stages=3, stages_v=3, separate_o=False, ctas_per_sm=2),
    128: Sm90DecodeTile(tile_m=64, tile_n=64, stages=3, stages_v=2, separate_o=False, ctas_per_sm=2),
    256: Sm90DecodeTile(
        tile_m=64, tile_n=64, stages=2, stages_v=2, separate_o=False, q_in_registers=False, consumer_regs=256
    ),
}


def tile_of(spec: KernelSpec) -> Sm90DecodeTile:
    """The tile of a kernel; ``KeyError`` for head dims that the matrix does not hold."""
    return _TILES[spec.head_dim]
