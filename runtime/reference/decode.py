"""What decode kernels compute: packed rows of each kv head, whose softmax starts anew in every leaf of the keys.

A packed row is a (query row, query head of the kv head) in this order; 64 of them decide together, whatever heads they
belong to. Leaves are merged in rising order into branches and branches into the result, as wherever the kernels do it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles.split import BRANCH_LEAVES, TWIG_LEAVES, leaf_tiles

from .._call.problem import Problem
from ._requests import Request, seen_by_request, tile_range, visible
from ._softmax import KEPT, LOG2E, SKIPPED, Softmax, Units, count, descale, log2_threshold, scores

_LN2 = math.log(2.0)


@dataclass(frozen=True)
class _State:
    """Rows [Hkv, rows] over some of their keys: the maximum in log2, sum and columns [Hkv, rows, Dv] relative to it."""

    m: torch.Tensor
    sum: torch.Tensor
    o: torch.Tensor

    @staticmethod
    def neutral(rows: tuple[int, int], columns: int) -> _State:
        minus_infinity = torch.full(rows, -math.inf, dtype=torch.float32)
        zeros = torch.zeros(*rows, columns, dtype=torch.float32)
        return _State(minus_infinity, zeros[..., 0], zeros)

    def merged(self, other: _State) -> _State:
        m = torch.maximum(self.m, other.m)
        base = torch.where(m == -math.inf, 0.0, m)
        first, second = torch.exp2(self.m - base), torch.exp2(other.m - base)
        o = _fused(self.o, first.unsqueeze(-1), other.o * second.unsqueeze(-1))
        return _State(m, _fused(self.sum, first, other.sum * second), o)


def _fused(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """A float32 a * b + c that is rounded once."""
    return (a.double() * b.double() + c.double()).float()


def compute(problem: Problem, kernel: Kernel, request: Request) -> None:
    """One request, as ``kernel`` and the one that merges would."""
    per_kv = problem.heads_q // problem.heads_kv
    seen = visible(problem, request, torch.arange(request.len_q))
    tiles = tile_range(problem, seen, kernel.tile_n)
    spacing = leaf_tiles(len(tiles), kernel.tile_n, kernel.head_dim)
    leaves = range(tiles.start // spacing, max(-(-tiles.stop // spacing), tiles.start // spacing + 1))
    for first_row in range(0, request.len_q * per_kv, kernel.group_rows):
        packed = torch.arange(first_row, min(first_row + kernel.group_rows, request.len_q * per_kv))
        _Group(problem, kernel, request, packed).compute(leaves, spacing)


TWIGS = BRANCH_LEAVES // TWIG_LEAVES  # of a branch


class _Group:
    """The packed rows of one group, of all kv heads at once. Tensors over them are [Hkv or 1, rows, ...]."""

    def __init__(self, problem: Problem, kernel: Kernel, request: Request, packed: torch.Tensor) -> None:
        self.problem, self.kernel, self.request = problem, kernel, request
        self.per_kv = problem.heads_q // problem.heads_kv
        self.index = int(packed[0]) // kernel.group_rows
        self.rows, self.heads = packed // self.per_kv, packed % self.per_kv
        self.units = Units.of(problem, request.index, problem.heads_kv)
        self.q = self._of_heads(request.q)
        self.seen = self._of_heads(visible(problem, request, torch.arange(request.len_q)))
        self.limit = self._of_heads(log2_threshold(problem, request.index))
        self.slopes, self.sinks = (
            None if values is None else self._of_heads(values.unsqueeze(1))
            for values in (request.slopes, request.sinks)
        )
        self.tiles = tile_range(problem, self.seen, kernel.tile_n)

    def _of_heads(self, values: torch.Tensor) -> torch.Tensor:
        """[Hkv or 1, rows, ...] of what is [Hq or 1, query rows or 1, ...]."""
        if len(values) > 1:
            values = values.reshape(self.problem.heads_kv, self.per_kv, *values.shape[1:])
        else:
            values = values.unsqueeze(1).expand(1, self.per_kv, *values.shape[1:])
        rows = self.rows if values.shape[2] > 1 else torch.zeros_like(self.rows)
        return values[:, self.heads, rows]

    def compute(self, leaves: range, spacing: int) -> None:
        rows = (self.problem.heads_kv, len(self.rows))
        start, neutral = self._start(rows), _State.neutral(rows, self.problem.head_dim_v)
        result = neutral
        for branch in range(leaves.start // BRANCH_LEAVES, -(-leaves.stop // BRANCH_LEAVES)):
            merged = neutral
            for twig in range(branch * TWIGS, (branch + 1) * TWIGS):
                of_twig = [leaf for leaf in range(twig * TWIG_LEAVES, (twig + 1) * TWIG_LEAVES) if leaf in leaves]
                state = neutral
                for leaf in of_twig:
                    state = state.merged(self._leaf(start, range(leaf * spacing, (leaf + 1) * spacing)))
                merged = merged.merged(state) if of_twig else merged
            result = result.merged(merged)
        self._store(result)

    def _keys(self, tile: int) -> slice:
        return slice(tile * self.kernel.tile_n, min((tile + 1) * self.kernel.tile_n, self.request.len_k))

    def _scores(self, tile: int) -> torch.Tensor:
        """Raw scores of a tile, masked."""
        keys = self._keys(tile)
        distance = self.request.distance(self.rows, keys)
        raw = scores(self.units, self.q, self.request.k[:, keys].float(), self.slopes, distance)
        return raw.masked_fill(~self.seen[..., keys], -math.inf)

    def _start(self, rows: tuple[int, int]) -> torch.Tensor:
        """The maxima that every leaf starts from, in raw scores."""
        start = torch.full(rows, -math.inf, dtype=torch.float32)
        if self.problem.skip != "dense" and bool((self.limit > -math.inf).all(dim=1).any()):
            for tile in self._start_tiles():
                start = torch.maximum(start, self._scores(tile).amax(dim=-1))
        # Of the kv heads: each has thresholds of its own.
        return torch.where((self.limit > -math.inf).all(dim=1, keepdim=True), start, -math.inf)

    def _start_tiles(self) -> list[int]:
        """Tile 0 where rows see the first key, and large scores gather there.

        With windows, slopes or sinks the last one, and the one before if a row that has keys sees none of it. By
        geometry, whatever a custom mask says.
        """
        problem = self.problem
        if problem.mask in ("full", "causal", "custom") and not problem.form.alibi and problem.params.sinks is None:
            return list(self.tiles[:1])
        if not self.tiles or problem.mask == "custom":
            return list(self.tiles[-1:])
        has_keys, sees_last = self.seen[0].any(dim=1), self.seen[0, :, self._keys(self.tiles[-1])].any(dim=1)
        return list(self.tiles[-1:] if bool((sees_last | ~has_keys).all()) else self.tiles[-2:])

    def _leaf(self, start: torch.Tensor, own: range) -> _State:
        problem, units = self.problem, self.units
        # SM90 multiplies probabilities of 16 bits whatever it reads.
        dtype = self.request.v.dtype if self.kernel.arch == "sm100" else self.request.out.dtype
        softmax = Softmax(start, problem.head_dim_v, units, dtype)
        for tile in reversed(own):
            if tile not in self.tiles:
                continue
            raw = self._scores(tile)
            skipped = softmax.skips(raw, self.limit)
            hidden = ~seen_by_request(problem, self.request)[self._keys(tile)]
            values = self.request.v[:, self._keys(tile)].float().masked_fill(hidden.unsqueeze(-1), 0.0)
            softmax.add(raw, values, ~skipped)
            self._record(tile, skipped)
        m = torch.where(softmax.m == -math.inf, -math.inf, softmax.m * units.log2)
        return _State(m, softmax.l, softmax.o)

    def _record(self, tile: int, skipped: torch.Tensor) -> None:
        """The decisions of kv heads, as those of their query heads that have a row in the group."""
        here = torch.zeros(self.per_kv, dtype=torch.bool)
        here[self.heads] = True
        here, by_head = here.repeat(self.problem.heads_kv), skipped.repeat_interleave(self.per_kv)
        count(self.problem, self.request.index, by_head, here)
        if self.problem.params.skip_map is not None:
            marks = self.problem.params.skip_map[self.request.index, :, self.index, tile]
            marks[here] = torch.where(by_head, SKIPPED, KEPT).to(torch.uint8)[here]

    def _store(self, state: _State) -> None:
        total = state.sum if self.sinks is None else state.sum + torch.exp2(self.sinks * LOG2E - state.m)
        unit = descale(self.problem.params.v_descale, self.request.index, self.problem.heads_kv)
        out = torch.where((state.sum == 0).unsqueeze(-1), 0.0, state.o / total.unsqueeze(-1) * unit.unsqueeze(-1))
        lse = torch.where(state.sum == 0, -math.inf, state.m * _LN2 + state.sum.log())
        for kv_head in range(self.problem.heads_kv):
            heads = kv_head * self.per_kv + self.heads
            self.request.out[self.rows, heads] = out[kv_head].to(self.request.out.dtype)
            if self.request.lse is not None:
                self.request.lse[self.rows, heads] = lse[kv_head]
