"""What a sparsified model skips, as a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .config.config import SkipSoftmaxConfig
from .counts import TileCounts
from .model import record_of
from .modules import attention_modules
from .policy import PHASES, Phase, PhaseRule, policy_of
from .tables import percent, table


@dataclass(frozen=True)
class Row:
    """One layer in one phase. Counts are None where nobody counted."""

    layer: str
    phase: Phase
    threshold: str
    visited: int | None
    skipped: int | None

    @property
    def sparsity(self) -> float | None:
        """The skipped share of the visited tiles; None where none was visited."""
        return None if not self.visited or self.skipped is None else self.skipped / self.visited


@dataclass(frozen=True)
class Summary:
    """All layers of a model; as text a table."""

    rows: tuple[Row, ...]
    config: SkipSoftmaxConfig
    enabled: bool

    def sparsity(self, phase: Phase) -> float | None:
        """Of all layers together: counts are added up, since shares do not add."""
        counted = [row for row in self.rows if row.phase == phase and row.visited and row.skipped is not None]
        visited = sum(row.visited or 0 for row in counted)
        return sum(row.skipped or 0 for row in counted) / visited if visited else None

    def __str__(self) -> str:
        """The table, and a line for each phase that was counted."""
        shown = [(row.layer, row.phase, row.threshold, percent(row.sparsity)) for row in self.rows]
        shown += [("all", phase, "", percent(self.sparsity(phase))) for phase in PHASES if self.sparsity(phase)]
        lines = table(("layer", "phase", "threshold", "skipped"), shown)
        return "\n".join(lines if self.enabled else [*lines, "disabled: all of it runs dense"])


def describe(rule: PhaseRule | None, len_k: int | None = None) -> str:
    """A rule in a few characters: its threshold at a length, or how that follows from the length."""
    if rule is None:
        return "dense"
    factors = rule.factor if isinstance(rule.factor, tuple) else (rule.factor,)
    power = rule.length_power
    if len_k is not None:
        values = [PhaseRule(one, power).threshold(len_k) for one in factors]
        factors, power = tuple(value for value in values if isinstance(value, float)), 0.0
    low, high = min(factors), max(factors)
    text = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g} by head"
    return text if not power else f"{text} / len_k" if power == 1 else f"{text} / len_k^{power:.3g}"


def summary(model: torch.nn.Module, len_k: int | None = None) -> Summary:
    """Layers, phases, thresholds and what they skipped, if :func:`sparsify` was told to count.

    Args:
        model: a sparsified one.
        len_k: show thresholds at this length; default: how they follow from it.

    Raises:
        ArgumentError: the model was not sparsified.
    """
    record, rows = record_of(model), list[Row]()
    for name, module in attention_modules(model, record.config.targets).items():
        policy = policy_of(module)
        for phase in PHASES:
            rule = policy.rules.get(phase) if policy else None
            collector = policy.collector if policy else None
            visited = skipped = None
            if isinstance(collector, TileCounts):
                total = collector.total(phase)
                visited, skipped = (int(one) for one in (total.sum(0) if total.dim() == 2 else total))
            rows.append(Row(name, phase, describe(rule, len_k), visited, skipped))
    return Summary(tuple(rows), record.config, record.enabled and not record.dense_step)
