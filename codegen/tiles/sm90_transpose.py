"""The kernel that transposes V for e4m3 prefill of SM90: CTAs of eight warps take tiles of one kv head's keys in turn.

It copies as many bytes as it writes, and computes next to nothing; what counts is that several CTAs of an SM have
copies under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..spec import KernelSpec
from . import sm90_prefill
from .common import GROUP_THREADS, Tile, row_bytes

_WARPGROUPS = 2  # a warp to 16 keys of 128 columns, or of all there are


@dataclass(frozen=True)
class Sm90TransposeTile(Tile):
    """``tile_n`` is that of the prefill kernels, whose tiles are copied whole."""

    @property
    def group_rows(self) -> int:
        """Nothing decides anything here."""
        return 0

    @property
    def consumers(self) -> int:
        """No row groups."""
        return 0

    @property
    def registers(self) -> tuple[int, ...]:
        """What they get at launch."""
        return (256 // self.ctas_per_sm // 8 * 8,) * _WARPGROUPS

    @property
    def o_rows(self) -> int:
        """There is no O."""
        return 0

    @property
    def barrier_bytes(self) -> int:
        """One barrier."""
        return 1024

    def traits(self, spec: KernelSpec) -> Mapping[str, int | bool]:
        """Threads of a CTA."""
        del spec
        return {"kThreads": _WARPGROUPS * GROUP_THREADS}

    def smem_bytes(self, spec: KernelSpec) -> int:
        """The tile as it is, and transposed."""
        return self.tile_n * (row_bytes(spec.head_dim_v, spec.dtype) + spec.head_dim_v) + self.barrier_bytes


def tile_of(spec: KernelSpec) -> Sm90TransposeTile:
    """The tile of a kernel; ``KeyError`` for head dims that the matrix does not hold."""
    return Sm90TransposeTile(
        tile_m=0,
        tile_n=sm90_prefill.transposed_keys(spec.head_dim_v),
        stages=1,
        stages_v=1,
        separate_o=False,
        ctas_per_sm=4,
    )
