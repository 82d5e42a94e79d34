"""The MLA decode tile of SM90: two consumer warpgroups of 64 packed rows together, and one producer warpgroup.

A tile of the latent cache is keys and values at once, so it lies in shared memory once, and there is room for two. Each
of the consumers has half of the output's 512 columns, which no warpgroup has registers for alone; one of them computes
the scores as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..spec import KernelSpec
from .common import Tile, row_bytes
from .split import GROUP_ROWS, split_traits

_BARRIER_BYTES = 3072  # barriers, votes, work items, and eight floats for each row


@dataclass(frozen=True)
class Sm90MlaTile(Tile):
    """The MLA decode tile of SM90."""

    leader_regs: int = 240
    follower_regs: int = 224
    producer_regs: int = 40

    @property
    def group_rows(self) -> int:
        """The CTA's."""
        return GROUP_ROWS

    @property
    def registers(self) -> tuple[int, ...]:
        """The consumers', the one that computes scores first, then the producer's."""
        return (self.leader_regs, self.follower_regs, self.producer_regs)

    @property
    def o_rows(self) -> int:
        """O is stored from registers."""
        return 0

    @property
    def barrier_bytes(self) -> int:
        """Barriers, votes and work items, and the probabilities that one consumer gives to the other."""
        return _BARRIER_BYTES + GROUP_ROWS * row_bytes(self.tile_n, "bf16")

    def traits(self, spec: KernelSpec) -> Mapping[str, int | bool]:
        """Registers per thread of the roles, and the constants of the split rule."""
        return {
            "kLeaderRegs": self.leader_regs,
            "kFollowerRegs": self.follower_regs,
            "kProducerRegs": self.producer_regs,
            **split_traits(self.tile_n, spec.head_dim),
        }


TILE = Sm90MlaTile(tile_m=64, tile_n=64, stages=2, stages_v=0, separate_o=False)


def tile_of(spec: KernelSpec) -> Sm90MlaTile:
    """The tile of a kernel: there is one."""
    del spec
    return TILE
