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


def e4m3_unsure(score_size: F64, softcap: float) -> F64:
    """Relative error [rows] that a kernel's exponentials may have: float32 scores, the polynomial, a capped tanh."""
    error = 2.2 * (score_size + 1.0) * 2.0**-20 + EXP2_ERROR
    return np.asarray(error + 2.2 * np.minimum(score_size, softcap) * 2.0**-10 if softcap else error)


@dataclass(frozen=True)
class Walk:
    """Rows that decide together: kept tiles in order, masked scores [rows, len_k], values [len_k, Dv], a sink logit."""

    tiles: list[int]
    tile_n: int
    s: F64
    v: F64
    sink: float


def e4m3_rows(walk: Walk, unsure: F64) -> tuple[F64, F64]:
    """(out, flips) [rows, Dv]. ``unsure`` [rows]: relative error of exponentials that may flip a rounding."""
    rows, columns = len(walk.s), walk.v.shape[1]
    base, total = np.full(rows, -np.inf), np.zeros(rows)
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
        total = total + np.exp(walk.sink - base)
        blind = base == -np.inf
        return (np.where(blind[:, None], 0.0, part / total[:, None]) for part in (out, flips))  # type: ignore[return-value]


def _times(weights: F64, v: F64) -> F64:
    """weights @ v, where keys without weight count for nothing, even if their values are NaN."""
    used = np.flatnonzero((weights != 0).any(axis=0))
    return np.asarray(weights[:, used] @ v[used])
