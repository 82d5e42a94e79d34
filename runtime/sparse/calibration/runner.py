"""Who runs texts for a calibration: a protocol, and one that needs but a function that calls the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import expected
from ..counts import TileCounts
from ..modules import attention_modules
from ..policy import Phase, policy_of

Sample = Sequence[int]  # token ids
Counts = NDArray[np.int64]  # [Hq, 2]: (visited, skipped)


@dataclass(frozen=True)
class Run:
    """What one text gave, in one phase, under the policies that were attached.

    Attributes:
        length: keys that thresholds were made of (of decode steps: in the middle of them).
        counts: by layer, of each query head, int64 ``[Hq, 2]``: visited and skipped tiles.
        loss: mean negative log-likelihood of the tokens, in nats; None: not known.
        dropped: by layer, of each query head, ``[Hq]``: the mean share of probability that was left out.
        divergence: of what it predicts from what the dense model does, in nats a token; None: not known.
        changed: by layer, of each query head, ``[Hq]``: the mean square of what its output, projected as the layer
            projects it, changes by what was left out, in squares of each row's input to the layer. (Weights that cannot
            be read, such as packed ones, are taken for the identity.)
    """

    length: int
    counts: Mapping[str, Counts]
    loss: float | None = None
    dropped: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    divergence: float | None = None
    changed: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class Runner(Protocol):
    """Runs a text through the model, on the kernels that will serve, with whatever policies are attached."""

    def run(self, sample: Sample, phase: Phase) -> Run:
        """Run it once.

        Args:
            sample: token ids.
            phase: ``prefill``: the text as a prompt; ``decode``: the last tokens of it step by step from a cache.
        """


@dataclass(frozen=True)
class Outcome:
    """What a forward function tells of one text: as in :class:`Run`; ``length`` None: as many as the text has."""

    loss: float | None = None
    length: int | None = None
    dropped: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    divergence: float | None = None
    changed: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


Forward = Callable[[Sample, Phase], Outcome | float | None]


class ModelRunner:
    """Runs a model by a function, and counts through the collectors of its policies.

    Args:
        model: whose attention modules call our kernels, as an integration lets them.
        forward: runs a text in a phase; returns its loss, an :class:`Outcome`, or None.
        targets: patterns of attention modules, as in a configuration.
    """

    def __init__(self, model: torch.nn.Module, forward: Forward, targets: Sequence[str] = ()) -> None:
        """Find the attention modules; raises as :func:`attention_modules`."""
        self._modules, self._forward = attention_modules(model, targets), forward
        self._counters = {name: TileCounts(by_head=True) for name in self._modules}

    def run(self, sample: Sample, phase: Phase) -> Run:
        """Run it once, counting; waits for the device.

        Raises:
            ArgumentError: a layer that was to skip counted nothing, so the model does not run on our kernels.
        """
        before = {name: policy.collector for name, module in self._modules.items() if (policy := policy_of(module))}
        try:
            for name in before:
                self._counters[name].reset()
                self._collect(name, self._counters[name])
            given = self._forward(sample, phase)
        finally:
            for name, collector in before.items():
                self._collect(name, collector)
        counts = {name: self._counted(name, phase) for name in before}
        outcome = given if isinstance(given, Outcome) else Outcome(given)
        length = len(sample) if outcome.length is None else outcome.length
        return Run(length, counts, outcome.loss, outcome.dropped, outcome.divergence, outcome.changed)

    def _collect(self, name: str, collector: object) -> None:
        policy = policy_of(self._modules[name])
        assert policy is not None, "looked up before"
        policy.collector = collector  # type: ignore[assignment]

    def _counted(self, name: str, phase: Phase) -> Counts:
        total = self._counters[name].total(phase)
        policy = policy_of(self._modules[name])
        if total.dim() != 2 or not int(total[..., 0].sum()):
            if policy and policy.rule(phase):
                wanted = f"{phase} calls of {name} that count tiles; is the model run with attention of skimattn?"
                raise expected("forward", wanted, "none")
            return np.zeros((1, 2), dtype=np.int64)
        counted: Counts = total.numpy()
        return counted
