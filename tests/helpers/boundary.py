"""Cases whose scores and thresholds are exact in float32, so that the strict < of the rule can be pinned down.

Raw scores are integers and the scale is a power of two times ln 2, so what the kernel compares with
log2(threshold) is an integer too. The thresholds lie on it, and 2^-15 of themselves beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .cases import Case, Content, narrow
from .patterns import integer_scores

BELOW, ON, ABOVE = 1.0 - 2.0**-15, 1.0, 1.0 + 2.0**-15
KEPT, SKIPPED = 1, 2


@dataclass(frozen=True)
class Boundary:
    """A case, its content, and the row of tiles that every group of it must end with."""

    case: Case
    held: list[Content]
    tiles: tuple[tuple[int, ...], ...]  # per request


def _rows(case: Case) -> int:
    """Two groups, the second ragged."""
    return case.group_rows + 6


def _scores(case: Case, gap: int, unit: int = 1) -> NDArray[np.int64]:
    """[rows, keys]: tile 0, visited first, reaches 0, the last -gap (every third row only), the middle one -gap - 1."""
    tile_n = case.tile_n
    s = np.full((_rows(case), 3 * tile_n), -gap - 40, dtype=np.int64)
    s[:, 3] = 0
    s[:, 2 * tile_n + 5] = -gap - 2
    s[::3, 2 * tile_n + 5] = -gap
    s[:, tile_n + 77 % tile_n] = -gap - 1
    return s * unit


def _content(case: Case, scores: NDArray[np.int64], threshold: float) -> Content:
    q, k = integer_scores(scores, len(scores), case.head_dim, base=16 if case.dtype == "e4m3" else 256)
    v = np.random.default_rng(case.seed).standard_normal((len(k), 1, case.head_dim_v))
    narrowed = [narrow(x, case.dtype) for x in (q, k, v)]
    assert (narrowed[0].double().numpy() == q).all() and (narrowed[1].double().numpy() == k).all(), "inexact"
    return Content(*narrowed, np.full(1, threshold, np.float32), None)


def _case(base: Case, name: str, requests: int, kind: str, thresholds: tuple[float, ...], unit: int = 1) -> Case:
    case = replace(
        base,
        name=name,
        dtype="fp16" if unit > 1 else base.dtype,
        mask="full",
        heads_q=1,
        heads_kv=1,
        q_layout="ragged",
        kv_layout="ragged",
        threshold_kind=kind,
        thresholds=thresholds,
        scale=math.log(2.0) / unit,
        exact=True,
    )
    return replace(case, lens=((_rows(case), 3 * case.tile_n),) * requests)


def single(base: Case, gap: int, factor: float, unit: int = 1) -> Boundary:
    """One request with a host threshold ``factor`` * 2^-gap; the last tile is the one in question."""
    threshold = float(np.float32(factor * 2.0**-gap))
    case = _case(base, f"boundary-{gap}-{factor}-{unit}", 1, "float", (threshold,), unit)
    want = SKIPPED if factor > 1 else KEPT
    return Boundary(case, [_content(case, _scores(case, gap, unit), threshold)], ((KEPT, SKIPPED, want),))


def batch(base: Case, gap: int) -> Boundary:
    """Three requests that differ only in their device thresholds: below, on and above the boundary."""
    thresholds = tuple(float(np.float32(factor * 2.0**-gap)) for factor in (BELOW, ON, ABOVE))
    case = _case(base, f"boundary-{gap}-batch", 3, "batch", thresholds)
    held = [_content(case, _scores(case, gap), threshold) for threshold in thresholds]
    return Boundary(case, held, ((KEPT, SKIPPED, KEPT), (KEPT, SKIPPED, KEPT), (KEPT, SKIPPED, SKIPPED)))


def one(like: Case) -> Boundary:
    """Threshold 1: a tile that only equals the maximum is kept, one that falls short by 1 goes, one above is kept."""
    case = _case(like, "boundary-one", 3, "float", (1.0,))
    base = _scores(case, 8)
    equal, short, above = base.copy(), base.copy(), base.copy()
    equal[:, 2 * case.tile_n], short[:, 2 * case.tile_n], above[:, 2 * case.tile_n] = 0, -1, 1
    held = [_content(case, scores, 1.0) for scores in (equal, short, above)]
    return Boundary(case, held, ((KEPT, SKIPPED, KEPT), (KEPT, SKIPPED, SKIPPED), (KEPT, SKIPPED, KEPT)))


@cache
def boundaries(arch: str = "sm90") -> tuple[Boundary, ...]:
    """Every boundary case of an architecture."""
    base = Case("", arch=arch)
    wide = replace(base, head_dim=256, head_dim_v=256)
    singles = [single(base, gap, factor) for gap in (1, 10, 100) for factor in (BELOW, ON, ABOVE)]
    scaled = [single(base, 3, factor, unit=8) for factor in (BELOW, ON, ABOVE)]
    narrow_tiles = [single(wide, 5, factor) for factor in (ON, ABOVE)]
    bytewise = replace(base, dtype="e4m3")
    eight_bit = [single(bytewise, 9, factor) for factor in (BELOW, ON, ABOVE)]
    return (*singles, *scaled, *narrow_tiles, *eight_bit, batch(base, 7), one(base))
