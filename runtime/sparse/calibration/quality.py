"""Thresholds of each layer's or head's own: profiled, chosen, run together, and moved by what that missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ArgumentError, expected
from ..policy import Phase, PhaseRule
from .choose import Choice, choose
from .measure import Bench, Maker
from .profile import TOGETHER, Profile, mean_cost, profile_alone, profile_together, units_of
from .runner import Run, Sample

if TYPE_CHECKING:
    from .calibrate import Quality


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and what it did as a whole.

    Attributes:
        factors: by layer, one or one for each query head: ``threshold = factor / len_k ** length_power``.
        length_power: of the lengths of the texts, or 1.
        share: of all tiles, skipped as a whole on the texts.
        cost: of all of it, in the unit of the profile.
        profile: what it was chosen from.
    """

    factors: Mapping[str, float | tuple[float, ...]]
    length_power: float
    share: float
    cost: float
    profile: Profile


def choose_thresholds(
    bench: Bench,
    samples: Sequence[Sample],
    phase: Phase,
    together: Mapping[float, Sequence[Run]],
    length_power: float,
    quality: Quality,
    target: float | None,
    budget: float | None,
) -> Chosen:
    """Profile, choose, and correct.

    Args:
        bench: runs texts.
        samples: the texts.
        phase: of the requests.
        together: runs of the texts with every layer at the same threshold, by threshold.
        length_power: of the fit; thresholds of a profile are those of the longest text, and larger for shorter ones.
        quality: what was asked for.
        target: the share to skip; or
        budget: the cost that may be added.
    """
    longest = max(run.length for runs in together.values() for run in runs)
    scale = float(longest) ** length_power

    def rule(threshold: float) -> PhaseRule:
        return PhaseRule(threshold * scale, length_power)

    units = units_of(bench, next(iter(together.values())), phase, quality.by)
    if quality.cost in TOGETHER:
        profile = profile_together(units, together, quality.cost)
    else:
        alone, thresholds, some = samples[: quality.texts], quality.thresholds or tuple(together), next(iter(together))
        profile = profile_alone(bench, alone, phase, units, thresholds, together[some][0], rule, quality.cost)
    asked, found = target if target is not None else budget, list[Chosen]()
    for _ in range(quality.corrections + 1):
        assert asked is not None
        try:
            choice = choose(profile, share=asked) if target is not None else choose(profile, cost=asked)
        except ArgumentError as error:
            if found:  # what a correction asks for cannot be had: the nearest so far has to do
                break
            raise expected(f"targets.{phase}", "a share that the largest thresholds reach", error) from None
        rules = _rules(profile, choice, rule, together)
        share, cost = _as_a_whole(bench, samples, phase, rules, quality)
        factors = {layer: one.factor for layer, one in rules.items()}
        found.append(Chosen(factors, length_power, share, cost, profile))
        asked = _corrected(asked, share, cost, target, budget)
    return _best(found, target, budget)


def _best(found: Sequence[Chosen], target: float | None, budget: float | None) -> Chosen:
    """The nearest to a target; or what skips most within the budget, or exceeds it least."""
    if target is not None:
        return min(found, key=lambda one: abs(one.share - target))
    assert budget is not None
    within = [one for one in found if one.cost <= budget]
    return max(within, key=lambda one: one.share) if within else min(found, key=lambda one: one.cost)


def _corrected(asked: float, share: float, cost: float, target: float | None, budget: float | None) -> float:
    """What to ask the sums of the parts for, so that the whole comes nearer to what is wanted."""
    if target is not None:
        return min(max(asked + target - share, 0.0), 1.0)
    assert budget is not None
    return asked * min(max(budget / cost, 0.5), 2.0) if cost > 0 else asked * 2.0


def _rules(
    profile: Profile, choice: Choice, rule: Maker, together: Mapping[float, Sequence[Run]]
) -> dict[str, PhaseRule]:
    """By layer; with one factor for each query head where units are heads."""
    some = next(iter(together.values()))[0]
    factors: dict[str, float | list[float]] = {}
    for unit, threshold in zip(profile.units, choice.thresholds, strict=True):
        factor = rule(threshold).factor
        assert isinstance(factor, float)
        if not unit.heads:
            factors[unit.layer] = factor
            continue
        of_layer = factors.setdefault(unit.layer, [0.0] * len(some.counts[unit.layer]))
        assert isinstance(of_layer, list)
        for head in unit.heads:
            of_layer[head] = factor
    power = rule(0.0).length_power
    return {
        layer: PhaseRule(tuple(factor) if isinstance(factor, list) else factor, power)
        for layer, factor in factors.items()
    }


def _as_a_whole(
    bench: Bench, samples: Sequence[Sample], phase: Phase, rules: Mapping[str, PhaseRule], quality: Quality
) -> tuple[float, float]:
    """The share that is skipped, and the cost, with all rules at once."""
    key = "chosen " + repr(sorted((layer, rule.factor, rule.length_power) for layer, rule in rules.items()))
    runs = [bench.run(sample, phase, rules, key) for sample in samples]
    counts = sum(np.asarray(one).reshape(-1, 2).sum(axis=0) for run in runs for one in run.counts.values())
    dense = [bench.run(sample, phase, {}, "dense") for sample in samples] if quality.cost == "loss" else []
    return float(counts[1] / max(counts[0], 1)), mean_cost(runs, dense, quality.cost)
