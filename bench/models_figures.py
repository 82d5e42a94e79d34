"""What windows lost, as figures: changes of perplexity with intervals, shares, and what a curve says of a goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Case = dict[str, Any]
_RESAMPLES = 2000


@dataclass(frozen=True)
class Measured:
    """A window, dense or under thresholds: mean nats a token, and tiles."""

    loss: float
    visited: int = 0
    skipped: int = 0


def share_of(rows: Sequence[Measured]) -> float:
    """The skipped share of the tiles of windows."""
    visited = sum(row.visited for row in rows)
    return sum(row.skipped for row in rows) / visited if visited else 0.0


def added(sparse: Sequence[Measured], dense: Sequence[Measured]) -> dict[str, float]:
    """The change of perplexity with its 95 % interval, windows paired and drawn with replacement."""
    nats = np.array([one.loss - base.loss for one, base in zip(sparse, dense, strict=True)])
    random = np.random.default_rng(0)
    means = nats[random.integers(len(nats), size=(_RESAMPLES, len(nats)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(np.expm1(nats.mean())), "low": float(np.expm1(low)), "high": float(np.expm1(high))}


def at_goal(points: Sequence[Case], share: float, bar: float) -> Case:
    """What a curve says, between its points, of the goal: loss at that share, and share at that loss."""
    had = sorted((point["share"], point["added"]["mean"]) for point in points if "share" in point)
    shares, losses = ([0.0, *(one[at] for one in had)] for at in (0, 1))
    reached = share <= shares[-1]
    crossed = [index for index in range(1, len(losses)) if losses[index] > bar >= losses[index - 1]]
    at_bar = shares[-1] if not crossed else _between(losses, shares, crossed[-1], bar)
    return {
        "share": share,
        "bar": bar,
        "added": float(np.interp(share, shares, losses)) if reached else None,
        "share_at_bar": at_bar,
    }


def _between(x: Sequence[float], y: Sequence[float], index: int, at: float) -> float:
    part = (at - x[index - 1]) / (x[index] - x[index - 1])
    return float(y[index - 1] + part * (y[index] - y[index - 1]))
