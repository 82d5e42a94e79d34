"""How the keys of one decoded request are split, and which requests are decoded: rules of its own lengths alone.

So a request gives the same bits alone and inside any batch, on any number of multiprocessors. What is computed between
two borders is a *leaf*, whose state starts anew; 16 leaves next to each other are a *branch*. Leaves are merged in
rising order into their branch, and branches in rising order into the result, wherever that happens: a CTA may compute
one leaf, or a whole branch and merge on chip.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import KernelSpec

GROUP_ROWS = (
    64  # packed rows, in (query row, query head) order, that one wgmma tile (m64) holds and that decide together
)
MAX_GROUPS = 4  # of one (request, kv head)
KEYS_PER_ROW = 16  # a request of more than one group is decoded if it has as many keys for each packed row
MIN_LEAF_KEYS = 256
MAX_LEAVES = 128  # where the first one starts at a border; one more otherwise
BRANCH_LEAVES = 16


@dataclass(frozen=True)
class Split:
    """How the kernels of one phase split keys: leaves of at least ``min_leaf_keys``, ``branch_leaves`` to a branch."""

    min_leaf_keys: int = MIN_LEAF_KEYS
    branch_leaves: int = BRANCH_LEAVES

    @property
    def max_branches(self) -> int:
        """Of one request: neither the first leaf nor the first branch need start at a border."""
        return MAX_LEAVES // self.branch_leaves + 1

    def traits(self, tile_n: int) -> dict[str, int | bool]:
        """The rule as C++ constants."""
        return {
            "kMinLeafTiles": self.min_leaf_keys // tile_n,
            "kMaxLeaves": MAX_LEAVES,
            "kBranchLeaves": self.branch_leaves,
        }

    def leaf_tiles(self, tiles: int, tile_n: int) -> int:
        """Key tiles of a leaf, where ``tiles`` of ``tile_n`` keys are visible to the request: a power of two."""
        spacing = self.min_leaf_keys // tile_n
        while tiles > spacing * MAX_LEAVES:
            spacing *= 2
        return spacing


DECODE = Split()
# Note: an MLA group's state is 128 KB, as much as 114 keys, and a CTA that computes several leaves moves it twice for
# each. So they are long; a branch has as many keys as decode's.
MLA = Split(min_leaf_keys=1024, branch_leaves=4)
MLA_MOST_ROWS = 2048  # packed rows of a request that MLA decode takes: what the workspace has room for at any length


def decodes(len_q: int, len_k: int, qheads_per_kv: int) -> bool:
    """Whether a request of ``len_q`` rows and ``len_k`` keys is computed by decode kernels."""
    packed = len_q * qheads_per_kv
    return packed <= GROUP_ROWS or (packed <= MAX_GROUPS * GROUP_ROWS and len_k >= KEYS_PER_ROW * packed)


def most_rows(len_k: int) -> int:
    """The most packed rows of a request that decode kernels compute, with at most ``len_k`` keys."""
    return max(GROUP_ROWS, min(MAX_GROUPS * GROUP_ROWS, len_k // KEYS_PER_ROW))


def leaf_tiles(tiles: int, tile_n: int) -> int:
    """Of decode: :meth:`Split.leaf_tiles`."""
    return DECODE.leaf_tiles(tiles, tile_n)


def split_of(spec: KernelSpec) -> Split:
    """How the kernel's keys are split, or those of the kernels whose results it merges."""
    return MLA if spec.phase == "mla" or spec.head_dim_v > 256 else DECODE
