"""Decode tiles of SM90: one consumer warpgroup of 64 packed rows, and one producer warpgroup.

Decode waits for memory, not for products: most of the 64 rows are empty where there are few query heads to a kv head,
and that costs nothing as long as keys and values arrive more slowly than they are worked on. Two CTAs share an SM
where they fit, so that one loads while the other waits for a vote; bench/NOTES.md has the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..spec import KernelSpec
from .common import ELEMENT_BYTES, MAX_SMEM_BYTES, Tile, row_bytes
from .split import GROUP_ROWS, split_traits

_BARRIER_BYTES = 1024  # barriers, votes and the two work items


@dataclass(frozen=True)
class Sm90DecodeTile(Tile):
    """A decode tile of SM90. ``q_in_registers``: Q is an operand from registers, and its slot free at once.

    Of 8-bit elements ``stages`` and ``stages_v`` count the slots that copies fill; they are converted to one tile of
    16 bits for each of K, V and (where it is no operand from registers) Q. Groups of up to 16 rows need none of these,
    and have Q, P and a few sums in their place.
    """

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
        """As for all tiles, and O of the leaves before in float32, which takes Q's place where Q is read at once."""
        q, merged = self.tile_m * row_bytes(spec.head_dim, spec.dtype), self.tile_m * spec.head_dim_v * 4
        shared = min(q, merged) if self.q_in_registers or ELEMENT_BYTES[spec.dtype] == 1 else 0
        total = super().smem_bytes(spec) + merged - shared
        assert self.ctas_per_sm * total <= MAX_SMEM_BYTES, (spec.name, total)
        return total

    def converted_bytes(self, spec: KernelSpec) -> int:
        """Of the tiles that 8-bit elements are converted to."""
        if ELEMENT_BYTES[spec.keys_dtype] > 1:
            return 0
        k_row, v_row = (row_bytes(columns, spec.products_dtype) for columns in (spec.head_dim, spec.head_dim_v))
        q_rows = self.tile_m if ELEMENT_BYTES[spec.dtype] == 1 and not self.q_in_registers else 0
        return self.tile_n * (k_row + v_row) + q_rows * k_row

    def traits(self, spec: KernelSpec) -> Mapping[str, int | bool]:
        """Registers per thread of both roles, where Q is, and the constants of the split rule."""
        return {
            "kProducerRegs": self.producer_regs,
            "kConsumerRegs": self.consumer_regs,
            "kQInRegisters": self.q_in_registers,
            **split_traits(self.tile_n, spec.head_dim),
        }


_ALONE = Sm90DecodeTile(
    tile_m=64, tile_n=64, stages=2, stages_v=2, separate_o=False, q_in_registers=False, consumer_regs=256
)
# head_dim -> tile, by bytes of a key's element. In 16 bits 16 KB of keys to a slot, or 32 KB where 256 columns leave
# one CTA to an SM anyway. In 8 bits half of that (but with 64 columns, where half of a panel stays empty), and as many
# slots as there is room for beside the converted tiles.
_TILES = {
    2: {
        64: Sm90DecodeTile(tile_m=64, tile_n=128, stages=3, stages_v=3, separate_o=False, ctas_per_sm=2),
        128: Sm90DecodeTile(tile_m=64, tile_n=64, stages=3, stages_v=2, separate_o=False, ctas_per_sm=2),
        256: _ALONE,
    },
    1: {
        64: Sm90DecodeTile(tile_m=64, tile_n=128, stages=2, stages_v=2, separate_o=False, ctas_per_sm=2),
        128: Sm90DecodeTile(tile_m=64, tile_n=64, stages=3, stages_v=3, separate_o=False, ctas_per_sm=2),
        256: _ALONE,
    },
}


def tile_of(spec: KernelSpec) -> Sm90DecodeTile:
    """The tile of a kernel; ``KeyError`` for head dims that the matrix does not hold."""
    return _TILES[ELEMENT_BYTES[spec.keys_dtype]][spec.head_dim]
