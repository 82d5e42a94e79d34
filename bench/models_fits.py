"""The other way to a scale factor, as ModelOpt's documents describe it, written here to be compared with ours.

Tiles are counted for all trial thresholds in one pass that skips nothing, and ``factor = a * exp(b * S)`` is fitted by
least squares of the factors themselves, so that the largest ones decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from skimattn.sparse import Fit, Point

_NAME = "skimattn_bench_dense_pass"
_B = (0.05, 80.0)  # between which b is looked for
_ROUNDS = 120


def linear_fit(points: Sequence[Point]) -> Fit:
    """Least squares in the space of factors, over points that skip 10 to 90 %.

    For a given b the best a is known in closed form, so b alone is searched: on a grid, then by golden section.

    Raises:
        ValueError: fewer than two points skip 10 to 90 %.
    """
    used = [point for point in points if 0.1 <= point.share <= 0.9]
    if len(used) < 2:
        raise ValueError(f"points: expected at least two that skip 10 to 90 % (got {len(used)})")
    shares = np.array([point.share for point in used])
    factors = np.array([point.threshold * point.length for point in used])
    scale = factors.max()

    def best_a(b: float) -> float:
        grown = np.exp(b * (shares - 1))
        return float((factors / scale * grown).sum() / (grown * grown).sum())

    def error(b: float) -> float:
        return float(((factors / scale - best_a(b) * np.exp(b * (shares - 1))) ** 2).sum())

    grid = np.geomspace(*_B, 200)
    at = int(np.argmin([error(float(b)) for b in grid]))
    b = _golden(error, float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)]))
    return Fit(a=best_a(b) * scale * float(np.exp(-b)), b=b)


def _golden(error: Callable[[float], float], low: float, high: float) -> float:
    ratio = (5**0.5 - 1) / 2
    for _ in range(_ROUNDS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if error(left) < error(right):
            high = right
        else:
            low = left
    return (low + high) / 2


@dataclass
class DensePass:
    """Attention that computes densely, and counts what thresholds would skip on the way.

    Args:
        thresholds: to count for.
    """

    thresholds: Sequence[float]
    counts: dict[float, torch.Tensor] = field(default_factory=dict)

    def __call__(self, module: Any, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
        """As transformers calls attention."""
        from skimattn.api import launch
        from skimattn.integrations.transformers._attention import as_transformers_has_it, params_of

        params = params_of(module, query, key, value, mask, **others)
        for threshold in self.thresholds:
            stats = self.counts.setdefault(threshold, torch.zeros(2, dtype=torch.int64, device=query.device))
            launch(replace(params, skip_softmax_threshold=threshold, stats=stats))
        out = launch(params)
        assert isinstance(out, torch.Tensor)
        return as_transformers_has_it(out, query, value), None

    def points(self, sample: str, length: int) -> list[Point]:
        """Of one text; counting begins anew."""
        taken = [(threshold, *stats.tolist()) for threshold, stats in self.counts.items()]
        self.counts.clear()
        return [Point(sample, length, threshold, visited, skipped) for threshold, visited, skipped in taken]


@contextmanager
def dense_pass(model: Any, thresholds: Sequence[float]) -> Iterator[DensePass]:
    """Forwards of a model in this context are such passes; it must have no policies."""
    from skimattn.integrations.transformers._register import computed_by

    found = DensePass(thresholds)
    with computed_by(model, _NAME, found):
        yield found
