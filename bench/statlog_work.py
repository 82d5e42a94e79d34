"""The rows of ``bench statlog``: a step of a stack of layers, and how fast it must be while it is logged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .goal import Goal
from .names import THRESHOLD

ON, OFF = "ours StatLog on", "ours StatLog off"
_GOALS = (Goal(ON, OFF, 0.99),)


@dataclass(frozen=True)
class Work:
    """One step.

    Args:
        label: in tables.
        phase: ``prefill``: ``length`` rows of each request, launched call by call; ``decode``: one row of each over a
            cache of ``length`` keys, as a CUDA graph.
        batch: requests.
        length: keys of each.
        layers: of the stack; each has weights of its own.
        hidden, inner: columns between layers, and inside an MLP.
        heads_q, heads_kv, head_dim: of attention.
        threshold: that attention skips at; the kernels that count are compared with those that skip at the same.
        goals: what must be reached.
    """

    label: str
    phase: Literal["prefill", "decode"]
    batch: int
    length: int
    layers: int = 8
    hidden: int = 4096
    inner: int = 12288
    heads_q: int = 32
    heads_kv: int = 8
    head_dim: int = 128
    threshold: float = THRESHOLD
    goals: tuple[Goal, ...] = _GOALS

    @property
    def group(self) -> str:
        """For choosing rows."""
        return self.phase


WORKS = (
    Work("prefill b1 16k", "prefill", 1, 16384),
    Work("decode b16 8k, graph", "decode", 16, 8192),
    Work("decode b1 8k, graph", "decode", 1, 8192),
)
