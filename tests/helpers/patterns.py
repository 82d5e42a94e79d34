"""Planted inputs: K and Q whose chosen (row, key block) scores lie far below or above the rest.

A few columns of q and k are control channels: column c of k is 1 for the keys of every block with
``block % channels == c`` and 0 elsewhere, and column c of q holds the bias, in score units, that the row
gives to those keys. What a pattern plants is a matrix bias[row, block]; the rest of q and k is noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
LOW, HIGH = -13.0, 16.0  # e^-13 is below any threshold the cases use, with room for the noise
BLOCKS_PER_TILE = 4


@dataclass(frozen=True)
class Field:
    """Where a pattern plants: the geometry of one head of one request."""

    len_q: int
    len_k: int
    tile_n: int
    group_rows: int
    seen: NDArray[np.bool_]  # [len_q, len_k]
    rank: NDArray[np.int64]  # [len_q, tiles]: when the row's group visits each tile, 0 first; -1 = never
    rng: np.random.Generator

    @property
    def block(self) -> int:
        """Keys per control block."""
        return self.tile_n // BLOCKS_PER_TILE

    @property
    def tiles(self) -> int:
        """Key tiles, the last possibly partial."""
        return -(-self.len_k // self.tile_n)

    @property
    def groups(self) -> int:
        """Row groups, the last possibly partial."""
        return -(-self.len_q // self.group_rows)

    def by_tile(self, low: NDArray[np.bool_]) -> F64:
        """bias[row, block] from low[row, tile]."""
        return np.repeat(np.where(low, LOW, 0.0), BLOCKS_PER_TILE, axis=1)

    def by_group(self, low: NDArray[np.bool_]) -> F64:
        """bias[row, block] from low[group, tile]."""
        return self.by_tile(np.repeat(low, self.group_rows, axis=0)[: self.len_q])

    def none(self) -> NDArray[np.bool_]:
        """low[row, tile] with nothing low."""
        return np.zeros((self.len_q, self.tiles), dtype=bool)

    def last_visible(self) -> NDArray[np.int64]:
        """The last tile each row sees anything of; -1 for rows that see nothing."""
        keys = np.where(self.seen.any(axis=1), self.len_k - 1 - np.argmax(self.seen[:, ::-1], axis=1), -self.tile_n)
        return np.asarray(keys // self.tile_n, dtype=np.int64)


def _nothing(field: Field) -> F64:
    return field.by_tile(field.none())


def _first(field: Field) -> F64:
    """The first keys are low. Where their tile is visited first it must be kept, and the maximum must rise after it."""
    low = field.none()
    low[:, :1] = True
    return field.by_tile(low)


def _last(field: Field) -> F64:
    """The last keys are low; as ``first`` where the last tile is visited first."""
    low = field.none()
    low[:, -1:] = True
    return field.by_tile(low)


def _alternating(field: Field) -> F64:
    return field.by_tile(field.rank % 2 == 1)


def _all_but_first(field: Field) -> F64:
    return field.by_tile(field.rank != 0)


def _diagonal(field: Field) -> F64:
    """Low on the tile below the one each row ends in, so that groups differ in what they drop."""
    return field.by_tile(np.arange(field.tiles)[None, :] == field.last_visible()[:, None] - 1)


def _masked(field: Field) -> F64:
    """Blocks a row sees nothing of are high, what it sees below its first tile is low: masked scores must not vote."""
    bias = _all_but_first(field)
    for block in range(bias.shape[1]):
        seen = field.seen[:, block * field.block : (block + 1) * field.block].any(axis=1)
        bias[~seen, block] = HIGH
    return bias


def _tail(field: Field) -> F64:
    """The ragged last tile towers over the rest, which must all go."""
    bias = _nothing(field)
    bias[:, (field.tiles - 1) * BLOCKS_PER_TILE :] = HIGH
    return bias


def _single_row(field: Field) -> F64:
    """Everything below is low but for one row of each group, which alone keeps one tile."""
    low = field.rank != 0
    for group in range(field.groups):
        rows = np.arange(group * field.group_rows, min((group + 1) * field.group_rows, field.len_q))
        low[field.rng.choice(rows), group % field.tiles] = False
    return field.by_tile(low)


def _staircase(field: Field) -> F64:
    """Each visited tile 5 below the one before: against the maximum of *kept* tiles the third is already low."""
    return np.repeat(-5.0 * np.maximum(field.rank, 0), BLOCKS_PER_TILE, axis=1)


def _lagging(field: Field) -> F64:
    """The second tile rises by e^5, too little for a lagging base to follow; only it makes the rest low."""
    return np.repeat(np.select([field.rank == 1, field.rank > 1], [5.0, -6.7], 0.0), BLOCKS_PER_TILE, axis=1)


def _random(field: Field) -> F64:
    return field.by_group(field.rng.random((field.groups, field.tiles)) < 0.6)


def _random_rows(field: Field) -> F64:
    """Rows disagree: a tile goes only where all rows of the group find it low."""
    groups = field.rng.random((field.groups, field.tiles)) < 0.6
    low = np.repeat(groups, field.group_rows, axis=0)[: field.len_q]
    return field.by_tile(low & (field.rng.random((field.len_q, field.tiles)) < 0.98))


PATTERNS: dict[str, Callable[[Field], F64]] = {
    "none": _nothing,
    "first": _first,
    "last": _last,
    "alternating": _alternating,
    "all_but_first": _all_but_first,
    "diagonal": _diagonal,
    "masked": _masked,
    "tail": _tail,
    "single_row": _single_row,
    "staircase": _staircase,
    "lagging": _lagging,
    "random": _random,
    "random_rows": _random_rows,
}

DEALT = tuple(name for name in PATTERNS if name != "lagging")  # to pairwise cases, which one name more would all change


def planted(order: str) -> tuple[str, ...]:
    """The patterns that drop a tile wherever a group of a full mask visits three tiles or more in this order."""
    kept = {"reverse": "last", "sink_first": "first"}[order]
    return tuple(name for name in PATTERNS if name not in ("none", "random", "random_rows", kept))


def channels(len_k: int, tile_n: int, head_dim: int) -> int:
    """Control columns that K of one request needs: one per key block, as far as half the columns go."""
    blocks = -(-len_k // tile_n) * BLOCKS_PER_TILE
    return max(1, min(blocks, head_dim // 2 // BLOCKS_PER_TILE * BLOCKS_PER_TILE))


def plant_keys(k: F64, tile_n: int) -> None:
    """Write the control columns of k [len_k, heads, D] in place."""
    count = channels(len(k), tile_n, k.shape[2])
    block = np.arange(len(k)) // (tile_n // BLOCKS_PER_TILE) % count
    k[:, :, :count] = np.eye(count)[block][:, None, :]


def plant_queries(q: F64, bias: F64, scale: float, len_k: int, tile_n: int) -> None:
    """Write the control columns of one head's q [len_q, D] in place, for bias [len_q, blocks] in score units.

    Where K is longer than the control columns reach, the bias of the last blocks wins and repeats downwards.
    """
    count = channels(len_k, tile_n, q.shape[1])
    q[:, :count] = 0.0
    last = bias[:, -count:]
    q[:, (np.arange(bias.shape[1])[-count:]) % count] = last / scale


def integer_scores(per_key: NDArray[np.int64], rows: int, dim: int, base: int = 256) -> tuple[F64, F64]:
    """(q [rows, 1, dim], k [keys, 1, dim]) whose raw scores are exactly ``per_key`` [rows, keys], |value| < base^2.

    Every row is a choice among at most dim // 2 distinct score vectors; values are split into two digits, which 16-bit
    types hold exactly at base 256 and e4m3 at base 16.
    """
    kinds, which = np.unique(per_key, axis=0, return_inverse=True)
    assert 2 * len(kinds) <= dim and rows == len(per_key)
    q, k = np.zeros((rows, 1, dim)), np.zeros((per_key.shape[1], 1, dim))
    row = np.arange(rows)
    q[row, 0, 2 * which.reshape(-1)] = base
    q[row, 0, 2 * which.reshape(-1) + 1] = 1.0
    for index, kind in enumerate(kinds):
        high = np.floor_divide(kind, base)
        k[:, 0, 2 * index], k[:, 0, 2 * index + 1] = high, kind - base * high
    return q, k
