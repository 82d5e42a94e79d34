"""The kernel that merges what decode CTAs left in the workspace: one CTA to a packed row, one warp to a branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..spec import KernelSpec
from .common import Tile
from .sm90_decode import tile_of as decode_tile_of
from .sm90_mla import TILE as MLA_TILE
from .split import GROUP_ROWS, MLA, split_of


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
        return (128, 128)

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
        split = split_of(spec)
        return {"kMaxBranches": split.max_branches, **split.traits(self.tile_n)}

    def smem_bytes(self, spec: KernelSpec) -> int:
        """Columns of every branch in float32, and its maximum and sum."""
        return -(-split_of(spec).max_branches * (spec.head_dim_v + 2) * 4 // 1024) * 1024


def tile_of(spec: KernelSpec) -> CombineTile:
    """The tile of a kernel; ``KeyError`` for head dims that the matrix does not hold."""
    tile_n = (MLA_TILE if split_of(spec) is MLA else decode_tile_of(spec)).tile_n
    return CombineTile(
        tile_m=1, tile_n=tile_n, stages=0, stages_v=0, separate_o=False, ctas_per_sm=2
    )
