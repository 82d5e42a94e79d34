"""Which requests are decoded, and into how many leaves their keys are split: numbers that are part of the meaning."""

from __future__ import annotations

import pytest
from skimattn.codegen.tiles import split


@pytest.mark.parametrize(
    ("len_q", "qheads_per_kv", "fewest_keys"),
    [
        (0, 8, 0),
        (1, 1, 0),
        (1, 64, 0),  # a group, whatever there is to see
        (64, 1, 0),
        (4, 16, 0),
        (65, 1, 65 * 16),  # two groups: 16 keys for each packed row
        (1, 65, 65 * 16),
        (5, 16, 80 * 16),
        (16, 16, 4096),  # four groups
        (256, 1, 4096),
        (1, 256, 4096),
        (257, 1, None),  # never, as for all that is larger
        (1, 257, None),
        (17, 16, None),
        (4096, 8, None),
    ],
)
def test_which_requests_are_decoded(len_q: int, qheads_per_kv: int, fewest_keys: int | None) -> None:
    for has_cache in (False, True):

        def decodes(len_k: int, has_cache: bool = has_cache) -> bool:
            return split.decodes(len_q, len_k, qheads_per_kv, has_cache)

        if fewest_keys is None:
            assert not decodes((1 << 31) - 1)
            continue
        fewest = fewest_keys if has_cache else max(fewest_keys, len_q + 1)  # self-attention is prefill's
        assert decodes(fewest) and decodes(fewest + 1)
        assert fewest == 0 or not decodes(fewest - 1)


@pytest.mark.parametrize("qheads_per_kv", [1, 3, 8, 65, 256])
def test_the_most_rows_are_those_of_some_request(qheads_per_kv: int) -> None:
    """``most_rows`` bounds every decoded request of at most so many keys, and for one head per kv head is reached."""
    for len_k in (0, 1, 63, 64 * 16, 65 * 16 - 1, 65 * 16, 100 * 16 + 15, 4095, 4096, 1 << 20):
        packed = [rows * qheads_per_kv for rows in range(300) if split.decodes(rows, len_k, qheads_per_kv, True)]
        assert max(packed) <= split.most_rows(len_k)
        if qheads_per_kv == 1:
            assert max(packed) == split.most_rows(len_k)


@pytest.mark.parametrize(("head_dim", "tile_n"), [(64, 128), (128, 64), (256, 64)])
def test_tiles_of_a_leaf(head_dim: int, tile_n: int) -> None:
    wanted = {0: 8, 1: 8, 8: 8, 1024: 8, 1025: 16, 2048: 16, 2049: 32, 1 << 20: 1 << 13}  # by visible tiles
    assert {tiles: split.leaf_tiles(tiles, tile_n, head_dim) for tiles in wanted} == wanted


@pytest.mark.parametrize(("head_dim", "tile_n", "keys"), [(64, 128, 1024), (128, 64, 512), (256, 64, 512)])
def test_leaves_are_the_shortest_of_which_there_are_not_too_many(head_dim: int, tile_n: int, keys: int) -> None:
    """The smallest power of two of at least so many keys, with at most 128 leaves from a border on."""
    powers = [1 << power for power in range(32)]
    for tiles in [*range(1, 5000), *(step << 13 for step in range(1, 200)), (1 << 31) // tile_n]:
        wanted = next(size for size in powers if size * tile_n >= keys and -(-tiles // size) <= 128)
        assert split.leaf_tiles(tiles, tile_n, head_dim) == wanted, tiles
