"""Prefill tiles of SM90: consumer warpgroups of 64 rows, and one producer warpgroup.

The rows were budgeted on paper (registers: 65536 per SM over all warpgroups; shared memory: 227 KB per CTA) and
measured on an H200 where ``bench/NOTES.md`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..spec import KernelSpec
from .common import ELEMENT_BYTES, Tile

GROUP_ROWS = 64  # one warpgroup's wgmma tile (m64)
_BARRIER_BYTES = 1024  # barriers and the two work items


@dataclass(frozen=True)
class Sm90PrefillTile(Tile):
    """A prefill tile of SM90."""

    q_register_steps: int = 0  # steps of Q, 32 bytes each, that stay in registers
    producer_regs: int = 40
    consumer_regs: int = 232

    @property
    def group_rows(self) -> int:
        """A warpgroup's."""
        return GROUP_ROWS

    @property
    def registers(self) -> tuple[int, ...]:
        """The consumers', then the producer's."""
        return (*[self.consumer_regs] * self.consumers, self.producer_regs)

    @property
    def o_rows(self) -> int:
        """Every consumer stores from a buffer of its own."""
        return self.tile_m

    @property
    def barrier_bytes(self) -> int:
        """Barriers and work items."""
        return _BARRIER_BYTES

    def v_slot_bytes(self, spec: KernelSpec) -> int:
        """8-bit values come transposed, in rows that are full."""
        if ELEMENT_BYTES[spec.dtype] > 1:
            return super().v_slot_bytes(spec)
        return self.tile_n * spec.head_dim_v

    def traits(self, spec: KernelSpec) -> Mapping[str, int | bool]:
        """Registers per thread of both roles, and the part of Q that stays in registers."""
        del spec
        return {
            "kProducerRegs": self.producer_regs,
            "kConsumerRegs": self.consumer_regs,
            "kQRegisterSteps": self.q_register_steps,
        }


# (head_dim, head_dim_v) -> tile of two groups, by bytes per element. In 16 bits a third K slot where it fits: K is
# waited for in every tile, V only in kept ones. In 8 bits as many as fit, up to four; O is twice as wide as Q, whose
# place it cannot take.
_TILES = {
    2: {
        (64, 64): Sm90PrefillTile(tile_m=128, tile_n=128, stages=3, stages_v=2, separate_o=True),
        # In the memory of 128 columns, a quarter of which is empty: rows lie in whole panels.
        (96, 96): Sm90PrefillTile(tile_m=128, tile_n=128, stages=3, stages_v=2, separate_o=True),
        (128, 128): Sm90PrefillTile(tile_m=128, tile_n=128, stages=3, stages_v=2, separate_o=True),
        # 48 KB of Q: O has to share its buffer.
        (192, 128): Sm90PrefillTile(tile_m=128, tile_n=128, stages=2, stages_v=2, separate_o=False),
        # 112 keys are as fast, and fit pages of 64 less well.
        (192, 192): Sm90PrefillTile(tile_m=128, tile_n=96, stages=2, stages_v=2, separate_o=False),
        (256, 256): Sm90PrefillTile(tile_m=128, tile_n=64, stages=2, stages_v=2, separate_o=False),
    },
    1: {
        (64, 64): Sm90PrefillTile(tile_m=128, tile_n=128, stages=4, stages_v=4, separate_o=True),
        (128, 128): Sm90PrefillTile(tile_m=128, tile_n=128, stages=4, stages_v=4, separate_o=True),
        (192, 128): Sm90PrefillTile(tile_m=128, tile_n=128, stages=3, stages_v=3, separate_o=True),
        # With 128 keys scores, output and P would take 208 registers, and ptxas serialises the products.
        (256, 256): Sm90PrefillTile(tile_m=128, tile_n=64, stages=4, stages_v=4, separate_o=True),
    },
}
# With 64 columns exponentials take as long as products, and three groups hide more of either (measured: 10 to 20 %;
# with 80 columns 4 to 13 %). With 128 keys they leave the loaders 32 registers, and of 80 columns have too few
# themselves; 96 keys leave enough to both.
_THREE_GROUPS = {
    64: Sm90PrefillTile(
        tile_m=192, tile_n=128, stages=3, stages_v=2, separate_o=True, consumer_regs=160, producer_regs=32
    ),
    80: Sm90PrefillTile(
        tile_m=192, tile_n=96, stages=3, stages_v=2, separate_o=True, consumer_regs=152, producer_regs=56
    ),
}


def transposed_keys(head_dim_v: int) -> int:
    """Keys of a tile of V where it comes transposed, with so many columns."""
    (keys,) = {tile.tile_n for dims, tile in _TILES[1].items() if dims[1] == head_dim_v}
    return keys


def tile_of(spec: KernelSpec) -> Sm90PrefillTile:
    """The tile of a kernel; ``KeyError`` for head dims that the matrix does not hold."""
    element_bytes = ELEMENT_BYTES[spec.dtype]
    three = _THREE_GROUPS.get(spec.head_dim) if element_bytes > 1 else None
    if three is not None and (three.producer_regs > 40 or not _loads_need_registers(spec)):
        return three if spec.skip == "dense" else replace(three, stages=2)
    found = _TILES[element_bytes][spec.head_dim, spec.head_dim_v]
    if spec.skip != "dense" and spec.head_dim <= 128:
        # Skipped tiles leave little to hide the next rows' arrival behind; bench/NOTES.md has the measurements.
        stages = 2 if element_bytes > 1 else found.stages
        found = replace(found, stages=stages, stages_q=2, q_register_steps=2 if element_bytes > 1 else 0)
    # Where scores, output, P and a tile's P.V take 208 registers, the consumers cannot spare any; nor can they with 256
    # columns of 16 bits.
    has_spare = spec.head_dim_v <= 192 if element_bytes > 1 else spec.head_dim_v != 128
    if (_loads_need_registers(spec) or spec.head_dim == 192) and has_spare:
        # Loaders that follow pages and count as well spill 12 bytes with 56.
        counts = spec.head_dim in (96, 192) and spec.paged and spec.skip == "stat"
        producer_regs, consumer_regs = (72, 216) if counts else (56, 224)
        found = replace(found, producer_regs=producer_regs, consumer_regs=consumer_regs)
    return found


def _loads_need_registers(spec: KernelSpec) -> bool:
    """Whether the loaders need more than 40 registers: to follow pages or two mask edges."""
    return spec.paged or spec.mask in ("window", "chunked")
