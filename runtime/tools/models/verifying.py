"""What ``skimattn verify`` says of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...integrations.transformers.comparison import Comparison, Pair
from ...sparse.policy import PHASES, Phase, policies_of
from ...sparse.report import describe
from ...sparse.tables import percent, table
from .calibrating import mean_and_error

# Student's t for 95 %, by degrees of freedom from 1 on; beyond them close to 1.96 + 2.5 / n.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
Rules = Mapping[Phase, Mapping[str, str]]


@dataclass(frozen=True)
class Summary:
    """Texts of one length (None: all) in one phase.

    Attributes:
        dense: perplexity.
        sparse: likewise.
        change: of the perplexity, as a share; from the mean of the differences of the texts' losses.
        interval: of the change, 95 %, paired by text; None for one text.
        largest: difference of logits.
        seconds: of all texts, dense and sparse.
    """

    phase: Phase
    length: int | None
    texts: int
    dense: float
    sparse: float
    change: float
    interval: tuple[float, float] | None
    largest: float
    seconds: tuple[float, float]


def summaries(found: Comparison) -> list[Summary]:
    """All texts of each phase, then each length if there are several."""
    lengths: list[int | None] = [None]
    several = sorted({pair.length for pair in found.pairs})
    if len(several) > 1:
        lengths += several
    return [
        _summary(phase, length, [pair for pair in found.pairs if length in (None, pair.length)])
        for phase in found.phases
        for length in lengths
    ]


def _summary(phase: Phase, length: int | None, pairs: Sequence[Pair]) -> Summary:
    dense, sparse = (
        math.exp(math.fsum(side.loss[phase] for side in sides) / len(pairs))
        for sides in ([pair.dense for pair in pairs], [pair.sparse for pair in pairs])
    )
    mean, error = mean_and_error([pair.added(phase) for pair in pairs])
    interval = None
    if error is not None:
        width = error * _t95(len(pairs) - 1)
        interval = math.expm1(mean - width), math.expm1(mean + width)
    return Summary(
        phase,
        length,
        len(pairs),
        dense,
        sparse,
        math.expm1(mean),
        interval,
        max(pair.largest[phase] for pair in pairs),
        (sum(pair.dense.seconds[phase] for pair in pairs), sum(pair.sparse.seconds[phase] for pair in pairs)),
    )


def _t95(freedom: int) -> float:
    return _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.5 / freedom


def rules_of(model: torch.nn.Module) -> Rules:
    """What layers skip by, in words, by phase; layers without a policy are left out."""
    found = policies_of(model)
    return {phase: {name: describe(policy.rules.get(phase)) for name, policy in found.items()} for phase in PHASES}


def lines(found: Comparison, of_phases: Sequence[Summary], rules: Rules) -> list[str]:
    """Tables: what it costs, what is skipped where; and whether greedy tokens are the same."""
    head = ("phase", "tokens", "texts", "dense", "sparse", "change", "95 %", "logits", "s dense", "s sparse")
    text = ["perplexity, and the largest difference of logits", *table(head, [_cells(one) for one in of_phases]), ""]
    text += _of_layers(found, rules)
    return [*text, *_of_greedy(found)]


def _cells(one: Summary) -> tuple[str, ...]:
    length = "all" if one.length is None else str(one.length)
    span = "-" if one.interval is None else f"{100 * one.interval[0]:+.2f} to {100 * one.interval[1]:+.2f} %"
    seconds = (f"{value:.2f}" for value in one.seconds)
    shown = (f"{one.dense:.4g}", f"{one.sparse:.4g}", f"{100 * one.change:+.3f} %", span, f"{one.largest:.3g}")
    return (one.phase, length, str(one.texts), *shown, *seconds)


def _of_layers(found: Comparison, rules: Rules) -> list[str]:
    names = [name for name in rules["prefill"] if any(name in found.tiles[phase] for phase in PHASES)]
    rows = []
    for name in names:
        cells = [name]
        for phase in found.phases:
            cells += [rules[phase][name], percent(_share(found, phase, [name]))]
        rows.append(tuple(cells))
    rows.append(("all", *(cell for phase in found.phases for cell in ("", percent(_share(found, phase))))))
    head = ("layer", *(cell for phase in found.phases for cell in (f"{phase} threshold", "skipped")))
    return table(head, rows)


def _share(found: Comparison, phase: Phase, names: Sequence[str] | None = None) -> float | None:
    tiles = found.tiles[phase]
    counts = [tiles[name] for name in (tiles if names is None else names) if name in tiles]
    visited, skipped = sum(one[0] for one in counts), sum(one[1] for one in counts)
    return skipped / visited if visited else None


def _of_greedy(found: Comparison) -> list[str]:
    if not found.pairs[0].dense.greedy:
        return []
    parted = [pair.parted for pair in found.pairs]
    same, tokens = sum(one is None for one in parted), len(found.pairs[0].dense.greedy)
    text = f"greedy tokens behind the texts: the same {tokens} in {same} of {len(parted)} texts"
    first = [str(one + 1) for one in parted if one is not None]
    return ["", text + (f"; others part at token {', '.join(first)}" if first else "")]


def as_values(found: Comparison, of_phases: Sequence[Summary], rules: Rules) -> dict[str, Any]:
    """The same as plain values."""
    layers = {
        phase: {
            name: {"threshold": rules[phase].get(name, "dense"), "visited": visited, "skipped": skipped}
            for name, (visited, skipped) in found.tiles[phase].items()
        }
        for phase in found.phases
    }
    texts = [
        {
            "tokens": pair.length,
            "loss": {"dense": dict(pair.dense.loss), "sparse": dict(pair.sparse.loss)},
            "largest_logit_difference": dict(pair.largest),
            "same_greedy_tokens": pair.parted is None,
            "parted_at": pair.parted,
        }
        for pair in found.pairs
    ]
    shares = {phase: _share(found, phase) for phase in found.phases}
    return {"summary": [vars(one) for one in of_phases], "sparsity": shares, "layers": layers, "texts": texts}
