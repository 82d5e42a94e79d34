"""What every layer, or group of heads, skips alone, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import expected
from ..modules import heads_of, kv_heads_of
from ..policy import Phase, PhaseRule
from .measure import Bench, Maker
from .runner import Run, Sample

Floats = NDArray[np.float64]
By = Literal["layer", "head"]
Cost = Literal["loss", "divergence", "dropped", "output"]
TOGETHER = ("dropped", "output")  # costs that runs of all layers tell


@dataclass(frozen=True)
class Unit:
    """What gets a threshold of its own: some query heads of a layer; no heads = all of it."""

    layer: str
    heads: tuple[int, ...] = ()

    def __str__(self) -> str:
        """The layer, and the first and last head."""
        return f"{self.layer} {self.heads[0]}-{self.heads[-1]}" if self.heads else self.layer

    def of(self, values: NDArray[np.generic]) -> Floats:
        """The sum over its heads of values ``[Hq, ...]``."""
        mine = values[list(self.heads)] if self.heads else values
        total: Floats = mine.sum(axis=0, dtype=np.float64)
        return total


@dataclass(frozen=True)
class Profile:
    """Measured alone at trial thresholds, in rising order.

    Attributes:
        units: U of them.
        thresholds: T of them.
        visited: tiles of a unit, ``[U]``, over all texts.
        skipped: of them, ``[U, T]``.
        cost: ``[U, T]``; in nats of mean loss or of divergence, in shares of probability, or as ``Run.changed``, per
            text.
    """

    units: tuple[Unit, ...]
    thresholds: tuple[float, ...]
    visited: Floats
    skipped: Floats
    cost: Floats


def units_of(bench: Bench, runs: Sequence[Run], phase: Phase, by: By) -> tuple[Unit, ...]:
    """All layers; or of each the groups of heads that can be told apart: in decode the heads of a kv head.

    A kv head's query heads decide together in decode, so thresholds of their own would only hold each other back.
    """
    if by == "layer":
        return tuple(Unit(layer) for layer in bench.modules)
    units = []
    for layer, module in bench.modules.items():
        heads = len(runs[0].counts[layer]) if layer in runs[0].counts else heads_of(module) or 1
        group = heads // (kv_heads_of(module) or heads) if phase == "decode" else 1
        units += [Unit(layer, tuple(range(first, first + group))) for first in range(0, heads, group)]
    return tuple(units)


def rule_of(unit: Unit, threshold: float, heads: int, rule: Maker) -> PhaseRule:
    """A rule under which only the unit's heads skip."""
    whole = rule(threshold)
    if not unit.heads:
        return whole
    assert isinstance(whole.factor, float), "trial rules are the same for all heads"
    return PhaseRule(tuple(whole.factor if head in unit.heads else 0.0 for head in range(heads)), whole.length_power)


def profile_alone(
    bench: Bench,
    samples: Sequence[Sample],
    phase: Phase,
    units: Sequence[Unit],
    thresholds: Sequence[float],
    some: Run,
    rule: Maker,
    cost: Cost,
) -> Profile:
    """Run every unit alone at every threshold, and see what it adds to the loss, or how far it moves predictions.

    Args:
        bench: runs texts.
        samples: the texts.
        phase: of the requests.
        units: what runs.
        thresholds: final ones, rising.
        some: any run in which all layers skipped, which tells how many heads they have.
        rule: of a threshold.
        cost: ``loss`` or ``divergence``.

    Raises:
        ArgumentError: the runner does not tell that cost.
    """
    heads = {layer: len(counts) for layer, counts in some.counts.items()}
    dense = [bench.run(sample, phase, {}, "dense") for sample in samples]
    shape = len(units), len(thresholds)
    visited, skipped, costs = np.zeros(shape[0]), np.zeros(shape), np.zeros(shape)
    for row, unit in enumerate(units):
        for column, threshold in enumerate(thresholds):
            rules = {unit.layer: rule_of(unit, threshold, heads[unit.layer], rule)}
            runs = [bench.run(sample, phase, rules, f"{unit} at {threshold:g}") for sample in samples]
            counts = sum(unit.of(run.counts[unit.layer]) for run in runs)
            visited[row], skipped[row, column] = counts[0], counts[1]  # type: ignore[index]
            costs[row, column] = mean_cost(runs, dense, cost)
    return Profile(tuple(units), tuple(thresholds), visited, skipped, costs)


def mean_cost(runs: Sequence[Run], dense: Sequence[Run], cost: Cost) -> float:
    """What texts cost in the mean: nats that were added to the loss, of divergence, or what units tell, in sum.

    Args:
        runs: of texts that skip.
        dense: of the same texts; of no use but for ``loss``.
        cost: which.

    Raises:
        ArgumentError: the runner does not tell that cost.
    """
    if cost == "loss":
        return float(np.mean([_loss(run) - _loss(base) for run, base in zip(runs, dense, strict=True)]))
    if cost == "divergence":
        return float(np.mean([_divergence(run) for run in runs]))
    return float(np.mean([sum(one.sum() for one in _told(run, cost).values()) for run in runs]))


def _told(run: Run, cost: Cost) -> Mapping[str, Floats]:
    return run.dropped if cost == "dropped" else run.changed


def _divergence(run: Run) -> float:
    if run.divergence is None:
        raise expected("forward", "the divergence of each text from the dense one, or another cost", "None")
    return run.divergence


def _loss(run: Run) -> float:
    if run.loss is None:
        raise expected("forward", "a loss for each text, or cost='dropped'", "None")
    return run.loss


def profile_together(units: Sequence[Unit], together: Mapping[float, Sequence[Run]], cost: Cost) -> Profile:
    """What every unit dropped, or changed, while all of them skipped: no labels and no further runs.

    Raises:
        ArgumentError: the runner does not tell it.
    """
    thresholds = tuple(together)
    shape = len(units), len(thresholds)
    visited, skipped, costs = np.zeros(shape[0]), np.zeros(shape), np.zeros(shape)
    for column, threshold in enumerate(thresholds):
        for row, unit in enumerate(units):
            runs = together[threshold]
            if any(unit.layer not in _told(run, cost) for run in runs):
                what = "dropped mass" if cost == "dropped" else "changed output"
                raise expected("forward", f"the {what} of {unit.layer}, or cost='loss'", "none")
            counts = sum(unit.of(run.counts[unit.layer]) for run in runs)
            visited[row], skipped[row, column] = counts[0], counts[1]  # type: ignore[index]
            costs[row, column] = float(np.mean([unit.of(_told(run, cost)[unit.layer]) for run in runs]))
    return Profile(tuple(units), thresholds, visited, skipped, costs)
