"""How the keys of one decoded request are split, and which requests are decoded: rules of its own lengths alone.

So a request gives the same bits alone and inside any batch, on any number of multiprocessors. What is computed between
two borders is a *leaf*, whose state starts anew. Four leaves next to each other are a *twig*, two twigs a *branch*:
leaves are merged into their twig in rising order, twigs into their branch, branches into the result, wherever that
happens: a CTA may compute a leaf, a twig or a branch.
"""

from __future__ import annotations

from collections.abc import Mapping

GROUP_ROWS = 64  # packed rows, in (query row, query head) order, that one product (m64) holds and that decide together
MAX_GROUPS = 4  # of one (request, kv head)
KEYS_PER_ROW = 16  # a request of more than one group is decoded if it has as many keys for each packed row
# By head_dim: 256 KB of 16-bit keys and values, or more. A group of MLA (576, and 512 where it is merged) has a state
# of 128 KB, which moves through L2 where leaves are merged, so its leaves are long.
MIN_LEAF_KEYS = {64: 1024, 128: 512, 256: 512, 576: 1024, 512: 1024}
MAX_LEAVES = 128  # where the first one starts at a border; one more otherwise
TWIG_LEAVES = 4
BRANCH_LEAVES = 8
MLA_MOST_ROWS = 2048  # packed rows of a request that MLA decode takes: what the workspace has room for at any length


def decodes(len_q: int, len_k: int, qheads_per_kv: int, has_cache: bool) -> bool:
    """Whether a request of ``len_q`` rows and ``len_k`` keys is computed by decode kernels.

    ``has_cache`` = the call's keys come from a cache (pages, or a buffer that ``seqused_k`` says the used part of). In
    other calls a request needs more keys than rows: self-attention over short texts is prefill's, and a ragged batch
    whose queries and keys share their offsets holds nothing for decode, which the host knows without their values.
    """
    if not has_cache and len_k <= len_q:
        return False
    packed = len_q * qheads_per_kv
    return packed <= GROUP_ROWS or (packed <= MAX_GROUPS * GROUP_ROWS and len_k >= KEYS_PER_ROW * packed)


def most_rows(len_k: int) -> int:
    """The most packed rows of a request that decode kernels compute, with at most ``len_k`` keys."""
    return max(GROUP_ROWS, min(MAX_GROUPS * GROUP_ROWS, len_k // KEYS_PER_ROW))


def leaf_tiles(tiles: int, tile_n: int, head_dim: int) -> int:
    """Key tiles of a leaf, where ``tiles`` of ``tile_n`` keys are visible to the request: a power of two.

    ``head_dim`` is the kernel's.
    """
    spacing = MIN_LEAF_KEYS[head_dim] // tile_n
    while tiles > spacing * MAX_LEAVES:
        spacing *= 2
    return spacing


def split_traits(tile_n: int, head_dim: int) -> Mapping[str, int | bool]:
    """The split rule as C++ constants."""
    return {
        "kLeafShift": (MIN_LEAF_KEYS[head_dim] // tile_n).bit_length() - 1,
        "kMaxLeaves": MAX_LEAVES,
        "kTwigLeaves": TWIG_LEAVES,
        "kBranchLeaves": BRANCH_LEAVES,
    }
