"""Cases whose scores and thresholds are exact in float32, so that the strict < of the rule can be pinned down.

Raw scores are integers and the scale is a power of two times ln 2, so what the kernel compares with
log2(threshold) is an integer too. The thresholds lie on it, and 2^-15 of themselves beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .cases import DTYPES, Case, Content
from .patterns import integer_scores

BELOW, ON, ABOVE = 1.0 - 2.0**-15, 1.0, 1.0 + 2.0**-15
ROWS = 70  # two groups, the second ragged
KEPT, SKIPPED = 1, 2


@dataclass(frozen=True)
class Boundary:
    """A case, its content, and the row of tiles that every group of it must end with."""

    case: Case
    held: list[Content]
    tiles: tuple[tuple[int, ...], ...]  # per request


def _scores(gap: int, unit: int, tile_n: int) -> NDArray[np.int64]:
    """[rows, keys]: tile 0, visited first, reaches 0, the last -gap (every third row only), the middle one -gap - 1."""
    s = np.full((ROWS, 3 * tile_n), -gap - 40, dtype=np.int64)
    s[:, 3] = 0
    s[:, 2 * tile_n + 5] = -gap - 2
    s[::3, 2 * tile_n + 5] = -gap
    s[:, tile_n + 77 % tile_n] = -gap - 1
    return s * unit


def _content(case: Case, scores: NDArray[np.int64], threshold: float) -> Content:
    q, k = integer_scores(scores, ROWS, case.head_dim)
    v = np.random.default_rng(case.seed).standard_normal((len(k), 1, case.head_dim_v))
    dtype = DTYPES[case.dtype]
    q16, k16, v16 = (torch.from_numpy(x).to(dtype) for x in (q, k, v))
    assert (q16.double().numpy() == q).all() and (k16.double().numpy() == k).all(), "inexact"
    return Content(q16, k16, v16, np.full(1, threshold, np.float32), None)


def _case(name: str, requests: int, kind: str, thresholds: tuple[float, ...], unit: int, dim: int) -> Case:
    return Case(
        name=name,
        dtype="fp16" if unit > 1 else "bf16",
        head_dim=dim,
        head_dim_v=dim,
        mask="full",
        heads_q=1,
        heads_kv=1,
        lens=((ROWS, 3 * (64 if dim == 256 else 128)),) * requests,
        q_layout="ragged",
        kv_layout="ragged",
        threshold_kind=kind,
        thresholds=thresholds,
        scale=math.log(2.0) / unit,
        exact=True,
    )


def single(gap: int, factor: float, unit: int = 1, dim: int = 64) -> Boundary:
    """One request with a host threshold ``factor`` * 2^-gap; the last tile is the one in question."""
    threshold = float(np.float32(factor * 2.0**-gap))
    case = _case(f"boundary-{gap}-{factor}-{unit}", 1, "float", (threshold,), unit, dim)
    want = SKIPPED if factor > 1 else KEPT
    return Boundary(case, [_content(case, _scores(gap, unit, case.tile_n), threshold)], ((KEPT, SKIPPED, want),))


def batch(gap: int) -> Boundary:
    """Three requests that differ only in their device thresholds: below, on and above the boundary."""
    thresholds = tuple(float(np.float32(factor * 2.0**-gap)) for factor in (BELOW, ON, ABOVE))
    case = _case(f"boundary-{gap}-batch", 3, "batch", thresholds, 1, 64)
    held = [_content(case, _scores(gap, 1, case.tile_n), threshold) for threshold in thresholds]
    return Boundary(case, held, ((KEPT, SKIPPED, KEPT), (KEPT, SKIPPED, KEPT), (KEPT, SKIPPED, SKIPPED)))


def one() -> Boundary:
    """Threshold 1: a tile that only equals the maximum is kept, one that falls short by 1 goes, one above is kept."""
    case = _case("boundary-one", 3, "float", (1.0,), 1, 64)
    base = _scores(8, 1, case.tile_n)
    equal, short, above = base.copy(), base.copy(), base.copy()
    equal[:, 2 * case.tile_n], short[:, 2 * case.tile_n], above[:, 2 * case.tile_n] = 0, -1, 1
    held = [_content(case, scores, 1.0) for scores in (equal, short, above)]
    return Boundary(case, held, ((KEPT, SKIPPED, KEPT), (KEPT, SKIPPED, SKIPPED), (KEPT, SKIPPED, KEPT)))


def boundaries() -> tuple[Boundary, ...]:
    """Every boundary case."""
    singles = [single(gap, factor) for gap in (1, 10, 100) for factor in (BELOW, ON, ABOVE)]
    scaled = [single(3, factor, unit=8) for factor in (BELOW, ON, ABOVE)]
    narrow = [single(5, factor, dim=256) for factor in (ON, ABOVE)]
    return (*singles, *scaled, *narrow, batch(7), one())
