"""Covering arrays: a few rows in which every legal pair of values of two factors occurs together."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

Row = dict[str, Any]
Pair = tuple[str, Any, str, Any]
_TRIES = 60  # candidates per row, and draws before a pair counts as impossible


def _pairs(row: Row, names: Sequence[str]) -> set[Pair]:
    return {(first, row[first], second, row[second]) for first, second in combinations(names, 2)}


def covering(
    factors: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool], seed: int = 0, limit: int = 10_000
) -> list[Row]:
    """Rows over ``factors``, all ``allowed``, that cover every pair some allowed row has. The same seed, the same rows.

    Args:
        factors: values by factor name; values are hashable.
        allowed: whether a full row is legal.
        limit: stop after this many rows.
    """
    rng = random.Random(seed)
    names = list(factors)
    missing = {
        (first, a, second, b)
        for first, second in combinations(names, 2)
        for a in factors[first]
        for b in factors[second]
    }
    rows: list[Row] = []
    while missing and len(rows) < limit:
        pair = min(missing, key=repr) if not rows else rng.choice(sorted(missing, key=repr))
        candidates = _candidates(factors, allowed, pair, rng)
        if not candidates:
            missing.discard(pair)
            continue
        best = max(candidates, key=lambda row: len(_pairs(row, names) & missing))
        missing -= _pairs(best, names)
        rows.append(best)
    return rows


def _candidates(
    factors: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool], pair: Pair, rng: random.Random
) -> list[Row]:
    found = []
    draws = [(name, values, len(values), len(values).bit_length()) for name, values in factors.items()]
    for attempt in range(_TRIES * 40):
        row = _drawn(draws, rng.getrandbits)
        row[pair[0]], row[pair[2]] = pair[1], pair[3]
        if allowed(row):
            found.append(row)
        if len(found) == _TRIES // 4 or (not found and attempt > _TRIES * 30):
            break
    return found


def _drawn(draws: Sequence[tuple[str, Sequence[Any], int, int]], bits: Callable[[int], int]) -> Row:
    """What ``rng.choice`` would draw for each name, from the same stream, in a third of the time."""
    row = {}
    for name, values, count, width in draws:
        index = bits(width)
        while index >= count:
            index = bits(width)
        row[name] = values[index]
    return row
