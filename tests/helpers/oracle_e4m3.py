"""Attention with 8-bit probabilities, in float64 numpy: e4m3 of 256 times an exponential, as the contract of FP8 says.

Exponentials are measured from the row's maximum over the kept tiles so far, which moves with every tile that raises it,
so rounding depends on the order of the tiles. Row sums add what was not rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
FACTOR = 256.0  # of probabilities before rounding: it uses e4m3's range, whose largest value is 448
EXP2_ERROR = 1.1e-4  # relative, of exponentials by a polynomial of degree 3
_LARGEST, _LEAST_EXPONENT, _MANTISSA_BITS = 448.0, -6, 3


def round_e4m3(x: F64) -> F64:
    """Values >= 0 to the nearest e4m3 value, ties to even, at most 448; NaN stays."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.maximum(np.floor(np.log2(x)), _LEAST_EXPONENT)
    step = np.exp2(exponent - _MANTISSA_BITS)
    return np.asarray(np.minimum(np.round(x / step) * step, _LARGEST))


def e4m3_unsure(score_size: F64, softcap: float, sum_bits: int) -> F64:
    """Relative error [rows] that a kernel's exponentials may have: of sums, the polynomial, a capped tanh."""
    error = 2.2 * (score_size * 2.0**-sum_bits + 2.0**-20) + EXP2_ERROR
    return np.asarray(error + 2.2 * np.minimum(score_size, softcap) * 2.0**-10 if softcap else error)


@dataclass(frozen=True)
class Walk:
    """Rows that decide together: kept tiles in order, masked scores [rows, len_k], values [len_k, Dv].

    ``start`` [rows] is what exponentials of the first tile are measured from, unless that raises it.
    """

    tiles: list[int]
    tile_n: int
    s: F64
    v: F64
    start: F64


@dataclass(frozen=True)
class State:
    """Rows over some of their keys: sums [rows] and columns [rows, Dv] of exponentials measured from ``base`` [rows].

    ``flips`` [rows, Dv]: how far columns may be off where a rounding is flipped.
    """

    base: F64
    total: F64
    out: F64
    flips: F64

    def merged(self, other: State) -> State:
        """Over the keys of both."""
        base = np.maximum(self.base, other.base)
        origin = np.where(base == -np.inf, 0.0, base)
        with np.errstate(invalid="ignore", over="ignore"):
            a, b = np.exp(self.base - origin), np.exp(other.base - origin)
            pairs = ((self.out, other.out), (self.flips, other.flips))
            out, flips = (x * a[:, None] + y * b[:, None] for x, y in pairs)
            return State(base, self.total * a + other.total * b, out, flips)

    def rows(self, sink: float | F64) -> tuple[F64, F64]:
        """(out, flips) [rows, Dv] of the whole softmax."""
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            total, blind = self.total + np.exp(sink - self.base), self.total == 0
            out, flips = (np.where(blind[:, None], 0.0, part / total[:, None]) for part in (self.out, self.flips))
        return out, flips


def e4m3_state(walk: Walk, unsure: F64) -> State:
    """What a walk comes to. ``unsure`` [rows]: relative error of exponentials that may flip a rounding."""
    rows, columns = len(walk.s), walk.v.shape[1]
    base, total = walk.start, np.zeros(rows)
    out, flips = np.zeros((rows, columns)), np.zeros((rows, columns))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for tile in walk.tiles:
            keys = slice(tile * walk.tile_n, (tile + 1) * walk.tile_n)
            s, v = walk.s[:, keys], walk.v[keys]
            raised = np.maximum(base, s.max(axis=1))
            origin = np.where(raised == -np.inf, 0.0, raised)
            alpha, p = np.exp(base - origin), np.exp(s - origin[:, None])
            low, high = (round_e4m3(FACTOR * p * (1 + sign * unsure[:, None])) / FACTOR for sign in (-1, 1))
            out = out * alpha[:, None] + _times(round_e4m3(FACTOR * p) / FACTOR, v)
            flips = flips * alpha[:, None] + _times(high - low, np.abs(v))
            total, base = total * alpha + p.sum(axis=1), raised
    return State(base, total, out, flips)


def _times(weights: F64, v: F64) -> F64:
    """weights @ v, where keys without weight count for nothing, even if their values are NaN."""
    used = np.flatnonzero((weights != 0).any(axis=0))
    return np.asarray(weights[:, used] @ v[used])
