"""Runs texts under trial rules, each only once, and leaves the model as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..policy import LayerPolicy, Phase, PhaseRule, attach_policy, policy_of
from .point import Point
from .progress import Progress
from .runner import Run, Runner, Sample
from .state import State

Rules = Mapping[str, PhaseRule | None]  # by layer
Maker = Callable[[float], PhaseRule]  # of the rule that gives a final threshold, or about that


def digest(sample: Sample) -> str:
    """Names a text by its tokens."""
    return hashlib.sha256(np.asarray(sample, dtype=np.int64).tobytes()).hexdigest()[:16]


@dataclass
class Bench:
    """Where texts are run: a model's attention modules, who runs it, and what is known already.

    Attributes:
        modules: attention modules by name.
        total: how many runs are expected, for whom it may concern.
    """

    modules: Mapping[str, torch.nn.Module]
    runner: Runner
    state: State
    tell: Progress
    total: int = 0
    done: int = 0

    def run(self, sample: Sample, phase: Phase, rules: Rules, key: str) -> Run:
        """The run of a text under rules; taken from the state if it was made before.

        Args:
            sample: token ids.
            phase: of the requests; the other phase is dense.
            rules: of each layer; None or left out: dense.
            key: names the rules.
        """
        name = f"{phase}/{digest(sample)}/{key}"
        known = self.state.get(name)
        if known is None:
            with self._attached({layer: {phase: rule} for layer, rule in rules.items() if rule is not None}):
                run = self.runner.run(sample, phase)
            self.state.put(name, _packed(run))
        else:
            run = _unpacked(known)
        self.done += 1
        self.tell(min(self.done, self.total), self.total, f"{phase}: {key}")
        return run

    @contextmanager
    def _attached(self, rules: Mapping[str, Mapping[Phase, PhaseRule]]) -> Iterator[None]:
        before = {name: policy_of(module) for name, module in self.modules.items()}
        try:
            for name, module in self.modules.items():
                attach_policy(module, LayerPolicy(rules[name]) if name in rules else None)
            yield
        finally:
            for name, module in self.modules.items():
                attach_policy(module, before[name])


def _packed(run: Run) -> dict[str, Any]:
    return {
        "length": run.length,
        "counts": {name: np.asarray(counts).tolist() for name, counts in run.counts.items()},
        "loss": run.loss,
        "dropped": {name: np.asarray(mass).tolist() for name, mass in run.dropped.items()},
        "divergence": run.divergence,
        "changed": {name: np.asarray(change).tolist() for name, change in run.changed.items()},
    }


def _unpacked(row: Mapping[str, Any]) -> Run:
    return Run(
        int(row["length"]),
        {name: np.array(counts, dtype=np.int64) for name, counts in row["counts"].items()},
        row["loss"],
        {name: np.array(mass, dtype=np.float64) for name, mass in row["dropped"].items()},
        row.get("divergence"),  # files of earlier versions tell neither
        {name: np.array(change, dtype=np.float64) for name, change in row.get("changed", {}).items()},
    )


def trials(
    bench: Bench,
    samples: Sequence[Sample],
    phase: Phase,
    thresholds: Sequence[float],
    rule: Maker,
) -> dict[float, list[Run]]:
    """All texts at all thresholds, every layer with the same: runs by threshold, in the order of the texts."""
    return {
        threshold: [
            bench.run(sample, phase, dict.fromkeys(bench.modules, rule(threshold)), f"all at {threshold:g}")
            for sample in samples
        ]
        for threshold in thresholds
    }


def points_of(runs: Mapping[float, Sequence[Run]], names: Sequence[str], layer: str | None = None) -> list[Point]:
    """Points of a model, or of one of its layers.

    Args:
        runs: by final threshold, one for each text.
        names: of the texts.
        layer: default: all layers together.
    """
    points = []
    for threshold, of_threshold in runs.items():
        for name, run in zip(names, of_threshold, strict=True):
            counts = [run.counts[layer]] if layer is not None else list(run.counts.values())
            visited, skipped = (int(sum(int(one[:, at].sum()) for one in counts)) for at in (0, 1))
            points.append(Point(name, run.length, threshold, visited, skipped))
    return points
