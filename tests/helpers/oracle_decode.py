"""The oracle of decoded requests: packed rows of a kv head decide together, and the walk starts anew in every leaf.

Written from the contract alone, like ``oracle.py``. What the kernels fix (tile width, rows of a group, keys of a leaf)
comes in as plain numbers. How states are merged does not show here: the output is the softmax over the kept keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .oracle import (
    KEPT,
    Answer,
    Bits,
    Request,
    Rules,
    decide,
    empty_answer,
    head_scores,
    log2_threshold,
    settle,
    tile_maxima,
    visible_keys,
    visited_tiles,
)
from .oracle_e4m3 import State, Walk, e4m3_state, e4m3_unsure

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
_SEE_THE_FIRST_KEY = ("full", "causal", "custom")


@dataclass(frozen=True)
class Phases:
    """Which requests are decoded: of up to ``always`` packed rows, or up to ``most`` with ``keys_per_row`` for each.

    But for those whose keys come from no cache and are no more than their rows.
    """

    always: int
    most: int
    keys_per_row: int

    def decodes(self, len_q: int, len_k: int, qheads_per_kv: int, *, has_cache: bool) -> bool:
        """Of one request."""
        if len_q >= len_k and not has_cache:
            return False
        packed = len_q * qheads_per_kv
        return packed <= self.always or (packed <= self.most and len_k >= self.keys_per_row * packed)


@dataclass(frozen=True)
class Leaves:
    """How the keys are split: leaves of at least ``least_keys`` keys, at most ``most`` of them but for the borders."""

    least_keys: int
    most: int

    def spacing(self, tiles: int, tile_n: int) -> int:
        """Tiles of a leaf, where the request sees ``tiles``: the smallest power of two that is enough."""
        candidates = (2**exponent for exponent in range(40))
        return next(s for s in candidates if s * tile_n >= self.least_keys and math.ceil(tiles / s) <= self.most)


def attend_decoded(rules: Rules, leaves: Leaves, request: Request) -> Answer:
    """The answer for one request that is decoded; ``rules`` are those of the decode kernel."""
    heads, heads_kv = request.q.shape[1], request.k.shape[1]
    per_kv = heads // heads_kv
    packed = len(request.q) * per_kv
    answer = empty_answer(rules, request, groups=-(-packed // rules.group_rows))
    walks = [_Walk(rules, leaves, request, kv_head, answer) for kv_head in range(heads_kv)]
    for walk in walks:
        walk.decide_all()
    for head in range(heads):
        settle(rules, request, head, walks[head // per_kv].scores[head % per_kv], answer)
    for walk in walks if rules.p_dtype else ():
        walk.round_all()
    return answer


class _Walk:
    """The packed rows of one kv head: row p is query row p // G of query head p % G."""

    def __init__(self, rules: Rules, leaves: Leaves, request: Request, kv_head: int, answer: Answer) -> None:
        self.rules, self.answer = rules, answer
        self.per_kv = request.q.shape[1] // request.k.shape[1]
        self.first_head = kv_head * self.per_kv
        len_q, len_k = len(request.q), len(request.k)
        self.packed = len_q * self.per_kv
        parts = [head_scores(rules, request, self.first_head + i) for i in range(self.per_kv)]
        self.scores = [s for s, _ in parts]
        self.seen = np.stack([seen for _, seen in parts], axis=1).reshape(self.packed, len_k)
        scores = np.stack(self.scores, axis=1).reshape(self.packed, len_k)
        self.masked, self.v = np.where(self.seen, scores, -np.inf), request.v[:, kv_head]
        self.maxima, self.sees = tile_maxima(rules, self.masked, self.seen)
        given = request.threshold
        own = [-1.0] * self.per_kv if given is None else given[self.first_head : self.first_head + self.per_kv]
        limits = [log2_threshold(float(threshold)) for threshold in own]
        self.limit = np.tile(np.array(limits), len_q)
        # Which tiles are visited, and where a walk starts, is geometry: a custom mask's rows may see all keys.
        if rules.mask == "custom":
            self.geometry = np.ones((len_q, len_k), dtype=bool)
        else:
            self.geometry = visible_keys(rules, len_q, len_k)
        self.walked: list[
            tuple[Rows, list[int], Floats]
        ] = []  # of each leaf: rows, kept tiles in order, where it starts
        self.spacing = leaves.spacing(len(visited_tiles(rules, self.geometry)), rules.tile_n)

    def decide_all(self) -> None:
        """Every group's decisions, as those of every query head that has a row in it."""
        for group in range(-(-self.packed // self.rules.group_rows)):
            rows = np.arange(group * self.rules.group_rows, min((group + 1) * self.rules.group_rows, self.packed))
            self._decide(group, rows)

    def _decide(self, group: int, rows: Rows) -> None:
        geometry = self.geometry[rows // self.per_kv]
        tiles = visited_tiles(self.rules, geometry)
        starts = self._start_tiles(tiles, geometry) if (self.limit[rows] > -math.inf).all() else []
        running = self.maxima[rows][:, starts].max(axis=1, initial=-np.inf)
        for leaf in sorted({tile // self.spacing for tile in tiles}):
            own = range(max(tiles.start, leaf * self.spacing), min(tiles.stop, (leaf + 1) * self.spacing))
            decisions, close = decide(
                self.rules, own, self.maxima[rows], self.sees[rows], self.limit[rows], running=running, starts=starts
            )
            self.walked.append((rows, [tile for tile in decisions if decisions[tile] == KEPT], running))
            for tile, decision in decisions.items():
                self._record(group, rows, tile, decision, tile in close)

    def round_all(self) -> None:
        """What 8-bit probabilities give, leaf by leaf; order of merging does not show in float64."""
        answer = self.answer
        states: dict[int, tuple[Rows, State]] = {}  # by a group's first row
        assert answer.rounded is not None and answer.flips is not None
        for rows, tiles, start in self.walked:
            unsure = e4m3_unsure(answer.score_size[self._places(rows)], self.rules.softcap, self.rules.sum_bits)
            state = e4m3_state(Walk(tiles, self.rules.tile_n, self.masked[rows], self.v, start), unsure)
            first = int(rows[0])
            states[first] = (rows, states[first][1].merged(state) if first in states else state)
        for rows, state in states.values():
            places = self._places(rows)
            sink = -np.inf if self.rules.sinks is None else self.rules.sinks[places[1]]
            answer.rounded[places], answer.flips[places] = state.rows(sink)

    def _places(self, rows: Rows) -> tuple[Rows, Rows]:
        """Query row and query head of packed rows."""
        return rows // self.per_kv, self.first_head + rows % self.per_kv

    def _start_tiles(self, tiles: range, geometry: Bits) -> list[int]:
        """Tile 0 where rows see the first key; else the last one, and for rows that miss it the one before.

        Slopes and sinks make it the last one as well.
        """
        near = self.rules.alibi is not None or self.rules.sinks is not None
        if len(tiles) < 2 or (self.rules.mask in _SEE_THE_FIRST_KEY and not near):
            return list(tiles[:1])
        border = tiles[-1] * self.rules.tile_n
        misses = geometry.any(axis=1) & ~geometry[:, border:].any(axis=1)
        return [tiles[-2], tiles[-1]] if misses.any() else [tiles[-1]]

    def _record(self, group: int, rows: Rows, tile: int, decision: int, close: bool) -> None:
        keys = slice(tile * self.rules.tile_n, (tile + 1) * self.rules.tile_n)
        for row in rows:
            head = self.first_head + int(row % self.per_kv)
            if close and (head, group, tile) not in self.answer.ambiguous:
                self.answer.ambiguous.append((head, group, tile))
            self.answer.skip_map[head, group, tile] = decision
            if decision == KEPT:
                self.answer.kept_keys[head, row // self.per_kv, keys] = self.seen[row, keys]
