"""The kernel that merges what decode CTAs left in the workspace: one CTA to a packed row, one warp to a branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..spec import KernelSpec
from . import sm90_decode, sm90_mla, sm100_decode
from .common import Tile
from .split import BRANCH_LEAVES, GROUP_ROWS, MAX_LEAVES, split_traits

_DECODE_TILES = {"sm90": sm90_decode.tile_of, "sm100": sm100_decode.tile_of}
_MAX_BRANCHES = MAX_LEAVES // BRANCH_LEAVES + 1  # neither the first leaf nor the first branch need start at a border


@dataclass(frozen=True)
class CombineTile(Tile):
    """``tile_n`` is that of the decode kernels, whose leaves are merged."""

    @property
    def group_rows(self) -> int:
        """Those of decode, in which rows are counted."""
        return GROUP_ROWS

    @property
    def registers(self) -> tuple[int, ...]:
        """Two warpgroups, with what they get at launch."""
        return (256 // self.ctas_per_sm,) * 2

    @property
    def o_rows(self) -> int:
        """O is stored from registers; states of branches have columns in float32."""
        return 0

    @property
    def barrier_bytes(self) -> int:
        """Nothing but states: two floats more than the columns of each branch, rounded up."""
        return 0

    def traits(self, spec: KernelSpec) -> Mapping[str, int | bool]:
        """The split rule."""
        return {"kMaxBranches": _MAX_BRANCHES, **split_traits(self.tile_n, spec.head_dim)}

    def smem_bytes(self, spec: KernelSpec) -> int:
        """Columns of every branch in float32, and its maximum and sum."""
        return -(-_MAX_BRANCHES * (spec.head_dim_v + 2) * 4 // 1024) * 1024


def tile_of(spec: KernelSpec) -> CombineTile:
    """The tile of a kernel; ``KeyError`` for head dims that the matrix does not hold."""
    latent = spec.head_dim == 512
    merged = sm90_mla.TILE if latent else _DECODE_TILES[spec.arch](spec)
    # Note: of 512 columns a lane has so many that one CTA takes all registers.
    ctas_per_sm = 1 if latent else 2
    return CombineTile(tile_m=1, tile_n=merged.tile_n, stages=0, stages_v=0, separate_o=False, ctas_per_sm=ctas_per_sm)
