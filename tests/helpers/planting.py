"""Puts a pattern into the queries and keys of one request, for the rows that decide together in its kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import patterns
from .oracle import F64, Bits, Rules, visited_tiles, visiting_order


def plant(rules: Rules, pattern: str, q: F64, k: F64, seen: Bits, scales: F64, rng: np.random.Generator) -> F64:
    """Write to q and k in place; returns the share of its rows that find each key low, [len_k, Hkv].

    Args:
        rules: the kernel's; ``order`` is that in which the pattern counts tiles.
        pattern: its name.
        q: [len_q, Hq, D].
        k: [len_k, Hkv, D].
        seen: [Hkv, walks, rows, len_k], what the rows of each walk see. Its number tells prefill, whose query heads
            walk alone, from decode, where those of a kv head walk together, in (row, head) order.
        scales: what a product of q and k is worth, [Hkv].
        rng: of patterns that are random.
    """
    heads_kv, walks, rows, len_k = seen.shape
    per_kv, together = q.shape[1] // heads_kv, rows // len(q)
    patterns.plant_keys(k, rules.tile_n)
    low = np.zeros((len_k, heads_kv))
    for head in range(heads_kv):
        for walk in range(walks):
            own = seen[head, walk]
            place = patterns.Field(rows, len_k, rules.tile_n, rules.group_rows, own, _ranks(rules, own), rng)
            bias = patterns.PATTERNS[pattern](place)
            for i in range(together):
                to = q[:, head * per_kv + walk + i]
                patterns.plant_queries(to, bias[i::together], float(scales[head]), len_k, rules.tile_n)
            share = (bias < patterns.LOW / 2).mean(axis=0)
            low[:, head] += np.repeat(share, place.block)[:len_k] / walks
    return low


def _ranks(rules: Rules, seen: Bits) -> NDArray[np.int64]:
    """When the group of each row visits each tile, [rows, tiles]; -1 = never."""
    ranks = np.full((seen.shape[0], -(-seen.shape[1] // rules.tile_n)), -1, dtype=np.int64)
    for row in range(0, len(seen), rules.group_rows):
        rows = slice(row, row + rules.group_rows)
        for rank, tile in enumerate(visiting_order(rules.order, visited_tiles(rules, seen[rows]))):
            ranks[rows, tile] = rank
    return ranks
