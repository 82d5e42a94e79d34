"""A collector that keeps what every call counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from skimattn.sparse.policy import Phase


@dataclass
class Counts:
    """A collector of one layer: stage and counts ``[B, Hq, 2]`` of every call that skips."""

    calls: list[tuple[Phase, torch.Tensor]] = field(default_factory=list)

    def counts(self, phase: Phase, batch: int, heads_q: int, device: torch.device) -> torch.Tensor:
        stats = torch.zeros(batch, heads_q, 2, dtype=torch.int64, device=device)
        self.calls.append((phase, stats))
        return stats

    @property
    def stages(self) -> list[Phase]:
        return [stage for stage, _ in self.calls]
