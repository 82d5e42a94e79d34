"""The oracle: what a call means, in float64 numpy, written from the contract alone.

It shares no code with the kernels, the reference or the code generator. Tile width, row-group height
and visiting order come in as plain numbers, because decisions depend on them. All logs are natural
unless a name says ``log2``.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .oracle_e4m3 import Walk, e4m3_state, e4m3_unsure

F64 = NDArray[np.float64]
Bits = NDArray[np.bool_]

KEPT, SKIPPED = 1, 2
_LOG2E = 1.0 / math.log(2.0)
_SNAP = 1e-9  # float64 noise of an exact boundary; the rule is a strict <


@dataclass(frozen=True)
class Rules:
    """What all requests of a call share, but for ``alibi``. ``margin`` is in log2 units.

    ``window`` is (left, right), -1 unlimited; of chunked masks (-1, -1) is causal. ``custom_keys``: how many keys, the
    last ones, a custom mask has columns for; 0 = it has one for each key.
    """

    mask: str
    scale: float
    tile_n: int
    group_rows: int = 64
    order: str = "reverse"
    window: tuple[int, int] = (-1, -1)
    chunk: int = 0
    custom_keys: int = 0
    softcap: float = 0.0
    alibi: F64 | None = None  # [Hq]
    sinks: F64 | None = None  # [Hq]
    margin: float = 1e-4
    p_dtype: str = ""  # "e4m3": probabilities are rounded to it, times 256, before they meet V
    sum_bits: int = 20  # scores may err by 2^-sum_bits of their score_size


@dataclass(frozen=True)
class Request:
    """One request: q [len_q, Hq, D], k [len_k, Hkv, D], v [len_k, Hkv, Dv], threshold [Hq] (None = dense kernel)."""

    q: F64
    k: F64
    v: F64
    threshold: F64 | None = None
    custom: Bits | None = None  # [Hq, len_q, len_k or Rules.custom_keys]

    @cached_property
    def sizes(self) -> tuple[F64, F64]:
        """Magnitudes of q and k; what is not finite counts for nothing."""
        size_q, size_k = (np.abs(np.where(np.isfinite(x), x, 0.0)) for x in (self.q, self.k))
        return size_q, size_k


@dataclass
class Answer:
    """What the call must give, and how exactly floating point can be expected to give it."""

    out: F64  # [len_q, Hq, Dv]
    lse: F64  # [len_q, Hq]
    skip_map: NDArray[np.uint8]  # [Hq, groups, tiles]: 0 not visited, 1 kept, 2 skipped
    kept_keys: Bits  # [Hq, len_q, len_k]: visible, in a kept tile
    spread: F64  # [len_q, Hq, Dv]: sum p|v| / denominator, what relative errors of p scale with
    reach: F64  # [len_q, Hq, Dv]: sum |v| / denominator, what absolute errors of p scale with
    score_size: F64  # [len_q, Hq]: max over keys of scale * sum |q||k|, what dot products err by
    ambiguous: list[tuple[int, int, int]] = field(default_factory=list)  # (head, group, tile) too close to call
    rounded: F64 | None = None  # [len_q, Hq, Dv]: out with P as Rules.p_dtype rounds it
    flips: F64 | None = None  # [len_q, Hq, Dv]: what rounded moves by where P lies too close to two rounded values

    @property
    def visited(self) -> NDArray[np.int64]:
        """Visited group-tiles per head, [Hq]."""
        return np.asarray((self.skip_map != 0).sum(axis=(1, 2)), dtype=np.int64)

    @property
    def skipped(self) -> NDArray[np.int64]:
        """Skipped group-tiles per head, [Hq]."""
        return np.asarray((self.skip_map == SKIPPED).sum(axis=(1, 2)), dtype=np.int64)


def visible_keys(rules: Rules, len_q: int, len_k: int) -> Bits:
    """Which key each row may see, [len_q, len_k], for every mask but ``custom``."""
    position = np.arange(len_q)[:, None] + len_k - len_q
    key = np.arange(len_k)[None, :]
    if rules.mask == "full":
        return np.ones((len_q, len_k), dtype=bool)
    if rules.mask == "causal":
        return np.asarray(key <= position)
    if rules.mask == "window":
        left, right = rules.window
        seen = np.ones((len_q, len_k), dtype=bool)
        if left >= 0:
            seen &= key >= position - left
        if right >= 0:
            seen &= key <= position + right
        return seen
    assert rules.mask == "chunked", rules.mask
    left, right = (math.inf if side < 0 else side for side in rules.window)
    if rules.window == (-1, -1):
        right = 0
    near = (position - key <= left) & (key - position <= right)
    return np.asarray(near & (key // rules.chunk == np.floor_divide(position, rules.chunk)))


def custom_seen(rules: Rules, custom: Bits, len_k: int) -> Bits:
    """Which key each row sees by a custom mask, [Hq, len_q, len_k]: all those that it has no column for."""
    if rules.custom_keys == 0:
        return custom
    seen = np.ones((*custom.shape[:2], len_k), dtype=bool)
    for from_the_end in range(1, min(rules.custom_keys, len_k) + 1):
        seen[:, :, len_k - from_the_end] = custom[:, :, rules.custom_keys - from_the_end]
    return seen


def scores(rules: Rules, q: F64, k: F64, head: int) -> F64:
    """Scaled logits before masking of one head, [len_q, len_k]."""
    with np.errstate(invalid="ignore", over="ignore"):
        s = (q @ k.T) * rules.scale
    if rules.softcap > 0:
        s = rules.softcap * np.tanh(s / rules.softcap)
    if rules.alibi is not None:
        distance = np.abs(np.arange(len(q))[:, None] + len(k) - len(q) - np.arange(len(k))[None, :])
        s = s - rules.alibi[head] * distance
    return s


def visited_tiles(rules: Rules, seen: Bits) -> range:
    """The tiles one row group visits, in key order; ``seen`` holds the visible keys of its valid rows."""
    len_k = seen.shape[1]
    if len(seen) == 0 or len_k == 0:
        return range(0)
    if rules.mask in ("full", "custom"):
        return range(-(-len_k // rules.tile_n))
    keys = np.flatnonzero(seen.any(axis=0))
    if len(keys) == 0:
        return range(0)
    return range(int(keys[0]) // rules.tile_n, int(keys[-1]) // rules.tile_n + 1)


def visiting_order(order: str, tiles: range) -> list[int]:
    """The visited tiles as a kernel's metadata says it takes them."""
    falling = list(reversed(tiles))
    orders = {"forward": list(tiles), "reverse": falling, "sink_first": falling[-1:] + falling[:-1]}
    return orders[order]


def log2_threshold(threshold: float) -> float:
    """log2 of the threshold capped at 1; -inf (never skip) for NaN, zero and negative values."""
    return math.log2(min(threshold, 1.0)) if threshold > 0 else -math.inf


def vote(
    row_max: F64, running: F64, seen: Bits, limit: float | F64, margin: float, *, measured: bool = False
) -> tuple[bool, bool]:
    """(skip?, too close to call?) of one tile. All arguments are per valid row of the group, ``limit`` may be.

    ``measured``: ``running`` may be this very tile's maximum, and is then equal to it in any arithmetic.
    """
    if np.any(np.asarray(limit) == -math.inf):  # such a row never agrees
        return False, False
    with np.errstate(invalid="ignore"):
        gap = (row_max - running) * _LOG2E
        agrees = np.where(seen & (row_max != -np.inf), gap < limit - _SNAP, True)  # -inf counts as masked
        close = seen & (np.abs(gap - limit) < margin * np.maximum(1.0, np.abs(limit)))
        close &= ~(measured & (gap == 0.0))
    return bool(agrees.all()), bool(close.any() and (agrees | close).all())


def tile_maxima(rules: Rules, masked: F64, seen: Bits) -> tuple[F64, Bits]:
    """Per row and tile: the largest visible score (a NaN wins), and whether the row sees any key; [len_q, tiles]."""
    starts = range(0, masked.shape[1], rules.tile_n)
    tiles = [slice(start, start + rules.tile_n) for start in starts]
    maxima = [masked[:, keys].max(axis=1) for keys in tiles]  # numpy's max hands a NaN on
    sees = [seen[:, keys].any(axis=1) for keys in tiles]
    shape = (len(starts), len(masked))
    return np.array(maxima).reshape(shape).T, np.array(sees, dtype=bool).reshape(shape).T


def decide(
    rules: Rules,
    tiles: range,
    maxima: F64,
    sees: Bits,
    limit: float | F64,
    told: dict[int, int] | None = None,
    running: F64 | None = None,
    starts: Collection[int] = (),
) -> tuple[dict[int, int], list[int]]:
    """{tile: KEPT | SKIPPED} of one row group, and the tiles too close to call.

    Args:
        rules: order and margin.
        tiles: the tiles that the group visits.
        maxima: per valid row and tile, from :func:`tile_maxima`.
        sees: likewise.
        limit: log2 of the threshold, or of each row's.
        told: what to take for tiles that are too close to call; default: what float64 says.
        running: the maxima that the walk starts from; default: -inf.
        starts: the tiles that those were measured on.
    """
    decisions: dict[int, int] = {}
    close_calls = []
    running = np.full(len(maxima), -np.inf) if running is None else running
    for tile in visiting_order(rules.order, tiles):
        skip, close = vote(maxima[:, tile], running, sees[:, tile], limit, rules.margin, measured=tile in starts)
        decisions[tile] = SKIPPED if skip else KEPT
        if close:
            close_calls.append(tile)
            decisions[tile] = (told or decisions)[tile]
        if decisions[tile] == KEPT:
            running = np.maximum(running, maxima[:, tile])
    return decisions, close_calls


def softmax_rows(s: F64, kept: Bits, v: F64, sink: float) -> tuple[F64, F64, F64, F64]:
    """(out, lse, spread, reach) of rows that see ``kept`` keys; lse without the sink, denominator with it."""
    top = np.where(kept, s, -np.inf).max(axis=1, initial=-np.inf)
    blind = np.logical_not(np.any(kept, axis=1))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        p = np.where(kept, np.exp(s - top[:, None]), 0.0)
        total = p.sum(axis=1)
        weights = p / (total + np.exp(sink - top))[:, None]
        lse = np.where(blind, -np.inf, np.log(total) + top)
        reach = kept / (total + np.exp(sink - top))[:, None]
        parts = weigh((weights, weights, reach), kept, v)
    out, spread, reached = (np.where(blind[:, None], 0.0, part) for part in parts)
    return out, lse, spread, reached


def weigh(weights: tuple[F64, F64, F64], kept: Bits, v: F64) -> list[F64]:
    """The first weights @ v, the others @ abs(v), where keys that a row does not see count for nothing.

    Even if their values are NaN or Inf.
    """
    odd = np.flatnonzero(~np.isfinite(v).all(axis=1))
    plain = v.copy()
    plain[odd] = 0.0
    sizes = np.abs(plain)
    parts = [matrix @ values for matrix, values in zip(weights, (plain, sizes, sizes), strict=True)]
    for key in odd:
        for part, matrix, value in zip(parts, weights, (v[key], np.abs(v[key]), np.abs(v[key])), strict=True):
            part += np.where(kept[:, key, None], matrix[:, key, None] * value, 0.0)
    return parts


def attend(rules: Rules, request: Request) -> Answer:
    """The answer for one request of prefill."""
    answer = empty_answer(rules, request, groups=-(-len(request.q) // rules.group_rows))
    for head in range(request.q.shape[1]):
        s, seen = head_scores(rules, request, head)
        _decide_head(rules, request, head, (s, seen), answer)
        settle(rules, request, head, s, answer)
        _round_head(rules, request, head, s, answer)
    return answer


def empty_answer(rules: Rules, request: Request, groups: int) -> Answer:
    """An answer in which nothing is seen, visited or kept yet."""
    len_q, heads, _ = request.q.shape
    len_k, heads_kv, dim_v = request.v.shape
    assert heads % heads_kv == 0
    answer = Answer(
        out=np.zeros((len_q, heads, dim_v)),
        lse=np.full((len_q, heads), -np.inf),
        skip_map=np.zeros((heads, groups, -(-len_k // rules.tile_n)), dtype=np.uint8),
        kept_keys=np.zeros((heads, len_q, len_k), dtype=bool),
        spread=np.zeros((len_q, heads, dim_v)),
        reach=np.zeros((len_q, heads, dim_v)),
        score_size=np.zeros((len_q, heads)),
    )
    if rules.p_dtype:
        answer.rounded, answer.flips = np.zeros_like(answer.out), np.zeros_like(answer.out)
    return answer


def head_scores(rules: Rules, request: Request, head: int) -> tuple[F64, Bits]:
    """Scores of one query head before masking, and what its rows see; [len_q, len_k] both."""
    q, k = request.q[:, head], request.k[:, _kv_head(request, head)]
    if rules.mask == "custom":
        assert request.custom is not None
        seen = custom_seen(rules, request.custom, len(k))[head]
    else:
        seen = visible_keys(rules, len(q), len(k))
    return scores(rules, q, k, head), seen


def _kv_head(request: Request, head: int) -> int:
    return head * request.k.shape[1] // request.q.shape[1]


def _decide_head(rules: Rules, request: Request, head: int, scored: tuple[F64, Bits], answer: Answer) -> None:
    """The map and the kept keys of one head."""
    s, seen = scored
    limit = -math.inf if request.threshold is None else log2_threshold(float(request.threshold[head]))
    maxima, sees = tile_maxima(rules, np.where(seen, s, -np.inf), seen)
    for group in range(answer.skip_map.shape[1]):
        rows = slice(group * rules.group_rows, (group + 1) * rules.group_rows)
        decisions, close = decide(rules, visited_tiles(rules, seen[rows]), maxima[rows], sees[rows], limit)
        answer.ambiguous += [(head, group, tile) for tile in close]
        for tile, decision in decisions.items():
            answer.skip_map[head, group, tile] = decision
            keys = slice(tile * rules.tile_n, (tile + 1) * rules.tile_n)
            if decision == KEPT:
                answer.kept_keys[head, rows, keys] = seen[rows, keys]


def settle(rules: Rules, request: Request, head: int, s: F64, answer: Answer) -> None:
    """What one head, whose scores before masking are ``s``, gives by the keys that it keeps."""
    kv_head = _kv_head(request, head)
    sink = -math.inf if rules.sinks is None else float(rules.sinks[head])
    parts = softmax_rows(s, answer.kept_keys[head], request.v[:, kv_head], sink)
    answer.out[:, head], answer.lse[:, head], answer.spread[:, head], answer.reach[:, head] = parts
    if s.size:
        size_q, size_k = request.sizes
        answer.score_size[:, head] = (size_q[:, head] @ size_k[:, kv_head].T).max(axis=1) * rules.scale


def _round_head(rules: Rules, request: Request, head: int, s: F64, answer: Answer) -> None:
    """What one head gives with 8-bit probabilities."""
    if answer.rounded is None or answer.flips is None:
        return
    v = request.v[:, _kv_head(request, head)]
    sink = -math.inf if rules.sinks is None else float(rules.sinks[head])
    for group, marks in enumerate(answer.skip_map[head]):
        rows = slice(group * rules.group_rows, (group + 1) * rules.group_rows)
        visited = np.flatnonzero(marks)
        order = visiting_order(rules.order, range(visited[0], visited[-1] + 1)) if len(visited) else []
        kept = [tile for tile in order if marks[tile] == KEPT]
        masked = np.where(answer.kept_keys[head, rows], s[rows], -np.inf)
        walk = Walk(kept, rules.tile_n, masked, v, np.full(len(masked), -np.inf))
        unsure = e4m3_unsure(answer.score_size[rows, head], rules.softcap, rules.sum_bits)
        answer.rounded[rows, head], answer.flips[rows, head] = e4m3_state(walk, unsure).rows(sink)
