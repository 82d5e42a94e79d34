"""The running softmax of rows that decide together, the scores it takes in, and what it counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .._call.problem import Problem

LOG2E = math.log2(math.e)
KEPT, SKIPPED = 1, 2
FP8_GAIN = 256.0  # of probabilities that are rounded to e4m3, whose largest value is 448


@dataclass(frozen=True)
class Units:
    """A raw score times ``natural`` is a logit; times ``log2`` it is one in base 2, which is what kernels compare.

    Both are float32 [heads or 1, 1]; so is ``cap``, the factor inside the tanh (None without softcap).
    """

    natural: torch.Tensor
    log2: torch.Tensor
    cap: torch.Tensor | None

    @staticmethod
    def of(problem: Problem, index: int, heads: int) -> Units:
        """Those of request ``index``, where scores are computed for each of ``heads`` (Hq or Hkv)."""
        params = problem.params
        unit_of_qk = descale(params.q_descale, index, heads) * descale(params.k_descale, index, heads)
        if problem.softcap > 0:
            unit, of_unit = problem.softcap, _float([[1.0]])
            cap = _float(problem.softmax_scale / problem.softcap) * unit_of_qk
        else:
            unit, of_unit, cap = problem.softmax_scale, unit_of_qk, None
        return Units(_float(unit) * of_unit, _float(unit * LOG2E) * of_unit, cap)


def _float(value: float | list[list[float]]) -> torch.Tensor:
    """Whatever torch's default dtype is."""
    return torch.tensor(value, dtype=torch.float32)


def descale(value: torch.Tensor | None, index: int, heads: int) -> torch.Tensor:
    """What stands for one in an 8-bit tensor, for Hq or Hkv heads of request ``index``: float32 [heads or 1, 1]."""
    if value is None:
        return _float([[1.0]])
    if value.dim() < 2:
        return value.reshape(1, 1)
    return value[index].repeat_interleave(heads // value.shape[1]).unsqueeze(1)


class Softmax:
    """The running softmax of rows [heads, rows]: m in raw scores, which begins at ``start``; l and o relative to it."""

    def __init__(self, start: torch.Tensor, columns: int, units: Units, dtype: torch.dtype) -> None:
        self.m = start.clone()
        self.l = torch.zeros_like(start)
        self.o = torch.zeros(*start.shape, columns, dtype=torch.float32)
        self.units = units
        self.dtype, self.gain = dtype, FP8_GAIN if dtype.itemsize == 1 else 1.0

    def skips(self, scores: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
        """Per head, whether every row finds the tile below its ``limit``, log2 of the threshold [heads, rows or 1]."""
        highest = scores.amax(dim=-1)
        below = (highest - self.m) * self.units.log2 < limit
        blind = (highest == -math.inf) & (limit > -math.inf)  # as if masked, also where the inputs made it so
        return (below | blind).all(dim=-1)

    def add(self, scores: torch.Tensor, values: torch.Tensor, kept: torch.Tensor) -> None:
        """Take in a tile for the heads that kept it. ``values``: float32 [heads, keys, columns]."""
        m = torch.maximum(self.m, scores.amax(dim=-1))
        base = torch.where(m == -math.inf, 0.0, m) * self.units.log2  # a row that saw nothing yet has only -inf scores
        p = torch.exp2(scores * self.units.log2.unsqueeze(-1) - base.unsqueeze(-1))
        weights = (p * self.gain).to(self.dtype).float() / self.gain
        decay = torch.exp2(self.m * self.units.log2 - base)
        row_sum = self.l * decay + p.sum(dim=-1)
        o = self.o * decay.unsqueeze(-1) + weights @ values
        keep = kept.unsqueeze(-1)
        self.m = torch.where(keep, m, self.m)
        self.l = torch.where(keep, row_sum, self.l)
        self.o = torch.where(keep.unsqueeze(-1), o, self.o)

    def output(self, sinks: torch.Tensor | None, descale: torch.Tensor) -> torch.Tensor:
        """Normalised output [heads, rows, columns], times ``descale`` [heads or 1, 1]; rows without keys give 0."""
        total = self.l
        if sinks is not None:
            total = total + torch.exp(sinks - self.m * self.units.natural)
        out = self.o / total.unsqueeze(-1) * descale.unsqueeze(-1)
        return torch.where((self.m == -math.inf).unsqueeze(-1), 0.0, out)

    def lse(self) -> torch.Tensor:
        """Natural log of the sum of exponentials over the kept keys, [heads, rows]."""
        return self.l.log() + self.m * self.units.natural


def scores(
    units: Units, q: torch.Tensor, k: torch.Tensor, slopes: torch.Tensor | None, distance: torch.Tensor
) -> torch.Tensor:
    """Raw scores [heads, rows, keys] in float32: q.k, or its tanh where capped, less the alibi bias in the same unit.

    ``slopes``: alibi's, float32 [heads, rows or 1]; ``distance``: keys between each row and each key, [rows, keys].
    """
    raw = q @ k.transpose(1, 2)
    if units.cap is not None:
        raw = torch.tanh(raw * units.cap.unsqueeze(-1))
    if slopes is not None:
        raw = raw - (slopes / units.natural).unsqueeze(-1) * distance.float()
    return raw


def log2_threshold(problem: Problem, index: int) -> torch.Tensor:
    """log2(min(threshold, 1)) per head as [Hq or 1, 1]; -inf, which skips nothing, for 0 and for dense calls."""
    value = problem.params.skip_softmax_threshold
    threshold = value[index].reshape(-1, 1) if isinstance(value, torch.Tensor) else _float([[problem.threshold]])
    return torch.where(threshold > 0, threshold.clamp(max=1.0).log2(), -math.inf)


def count(problem: Problem, index: int, skipped: torch.Tensor, visited: torch.Tensor | None = None) -> None:
    """Add one tile to the counts of request ``index``, for the heads of [Hq] that visited it (default: all)."""
    stats = problem.params.stats
    if stats is None:
        return
    visited = torch.ones_like(skipped) if visited is None else visited
    counts = torch.stack([visited, visited & skipped], dim=-1).to(torch.int64)
    if stats.dim() == 3:
        stats[index] += counts
    else:
        (stats[index] if stats.dim() == 2 else stats).add_(counts.sum(dim=0))
