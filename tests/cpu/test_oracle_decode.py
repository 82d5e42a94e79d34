"""The oracle of decoded requests against decisions worked out by hand, and against softmax over all keys."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.helpers.oracle import Answer, Request, Rules, attend
from tests.helpers.oracle_decode import Leaves, Phases, attend_decoded

LEAVES = Leaves(least_keys=4, most=8)
RULE = Phases(always=64, most=256, keys_per_row=16)


def walk(maxima: list[list[float]], threshold: list[float] | None, heads: int = 1, **options: object) -> Answer:
    """Rows of given tile maxima, in (row, head) order; tiles of 2 keys, leaves of 2 tiles, groups of 2 packed rows."""
    s = np.repeat(np.array(maxima), 2, axis=1)
    q = np.eye(len(s)).reshape(-1, heads, len(s))
    rules = Rules(**{"mask": "full", "scale": 1.0, "tile_n": 2, "group_rows": 2, **options})  # type: ignore[arg-type]
    v = np.arange(s.shape[1], dtype=np.float64)[:, None, None]
    given = None if threshold is None else np.array(threshold)
    return attend_decoded(rules, LEAVES, Request(q, s.T[:, None, :].copy(), v, given))


E2 = math.exp(-2.0)


@pytest.mark.parametrize(
    ("options", "maxima", "wanted"),
    [
        ({}, [0, 8, -3, 5, -1, -1, 6, 9], [2, 1, 2, 1, 1, 1, 2, 1]),  # each leaf by itself, from the start's 0
        ({}, [8, 0, 0, 0, 0, 0], [1, 2, 2, 2, 2, 2]),
        ({"mask": "window", "window": (-1, 0)}, [8, 0, 3, 0, 0, 8], [1, 2, 2, 2, 2, 1]),
        ({"mask": "window", "window": (5, 0)}, [8, 8, 8, 0, 3, 3], [0, 0, 0, 2, 1, 1]),
    ],
)
def test_leaves_start_anew(options: dict[str, object], maxima: list[float], wanted: list[int]) -> None:
    got = walk([maxima], [E2], **options)
    assert got.skip_map.tolist() == [[wanted]] and not got.ambiguous


def test_heads_of_a_group_decide_together_each_by_its_threshold() -> None:
    rows = [[0.0, -3.0, -3.0], [0.0, -3.0, -3.0]]
    assert walk(rows, [E2, E2], heads=2).skip_map.tolist() == [[[1, 2, 2]]] * 2
    assert walk(rows, [E2, math.exp(-4.0)], heads=2).skip_map.tolist() == [[[1, 1, 1]]] * 2
    assert walk(rows, [E2, 0.0], heads=2).skip_map.tolist() == [[[1, 1, 1]]] * 2
    assert walk(rows, None, heads=2).skip_map.tolist() == [[[1, 1, 1]]] * 2


def test_heads_are_in_the_groups_in_which_they_have_rows() -> None:
    """Three heads and two rows: packed rows (row, head) are 00 01 | 02 10 | 11 12."""
    rows = [[0.0, -3.0]] * 2 + [[0.0, 1.0]] + [[0.0, -3.0]] * 3
    got = walk(rows, [E2] * 3, heads=3).skip_map
    first, middle, last = [1, 2], [1, 1], [1, 2]
    none = [0, 0]
    assert got.tolist() == [[first, middle, none], [first, none, last], [none, middle, last]]


def test_where_the_walk_starts() -> None:
    window = {"mask": "window", "window": (-1, 0), "group_rows": 8}
    # Three rows of six keys: row 0 ends in tile 1, so tiles 1 and 2 are what all start from.
    got = walk([[0.0, 5.0, 0.0]] * 3, [E2], **window)
    assert got.skip_map.tolist() == [[[2, 1, 2]]]
    # Two rows of six keys both see tile 2: it alone is.
    assert walk([[0.0, 5.0, 0.0]] * 2, [E2], **window).skip_map.tolist() == [[[2, 1, 1]]]
    # Tile 0 by geometry, whatever the bits say: a row that sees none of it starts at -inf and keeps its first tile.
    rules = Rules(mask="custom", scale=1.0, tile_n=2, group_rows=2)
    s = np.repeat(np.array([[5.0, 0.0, 0.0]] * 2), 2, axis=1)
    seen = np.ones((1, 2, 6), dtype=bool)
    request = Request(np.eye(2)[:, None, :], s.T[:, None, :].copy(), np.ones((6, 1, 1)), np.array([E2]), seen)
    assert attend_decoded(rules, LEAVES, request).skip_map.tolist() == [[[1, 2, 2]]]
    seen[0, 1, :2] = False
    assert attend_decoded(rules, LEAVES, request).skip_map.tolist() == [[[1, 1, 1]]]


def test_a_start_is_no_close_call_with_itself() -> None:
    assert walk([[0.0, -3.0, -9.0]], [1.0]).skip_map.tolist() == [[[1, 2, 2]]]
    assert not walk([[0.0, -3.0, -9.0]], [1.0]).ambiguous
    assert walk([[0.0, 0.0, -9.0]], [1.0]).ambiguous == [(0, 0, 1)]


def test_spacing() -> None:
    leaves = Leaves(least_keys=256, most=128)
    wanted = {0: 2, 1: 2, 256: 2, 257: 4, 512: 4, 513: 8}
    assert {tiles: leaves.spacing(tiles, 128) for tiles in wanted} == wanted
    assert [leaves.spacing(tiles, 64) for tiles in (1, 512, 513)] == [4, 4, 8]


def test_rule() -> None:
    for has_cache in (False, True):
        assert not RULE.decodes(17, 1087, 4, has_cache=has_cache) and RULE.decodes(17, 1088, 4, has_cache=has_cache)
        assert RULE.decodes(1, 4096, 256, has_cache=has_cache) and not RULE.decodes(1, 10**6, 257, has_cache=has_cache)
        assert RULE.decodes(16, 17, 4, has_cache=has_cache)
        assert RULE.decodes(16, 16, 4, has_cache=has_cache) == RULE.decodes(0, 0, 4, has_cache=has_cache) == has_cache


@pytest.mark.parametrize("mask", ["full", "causal", "window", "chunked", "custom"])
def test_without_skipping_nothing_of_it_shows(mask: str) -> None:
    rng = np.random.default_rng(2)
    q, k, v = rng.standard_normal((5, 4, 3)), *(rng.standard_normal((37, 2, 3)) for _ in "kv")
    rules = Rules(mask=mask, scale=1.0, tile_n=2, group_rows=2, window=(9, 1), chunk=8, sinks=np.arange(4.0))
    request = Request(q, k, v, None, rng.random((4, 5, 37)) < 0.5)
    decoded, other = attend_decoded(rules, LEAVES, request), attend(rules, request)
    assert np.array_equal(decoded.out, other.out) and np.array_equal(decoded.lse, other.lse)
    assert np.array_equal(decoded.kept_keys, other.kept_keys)
