"""One measured row of ``bench rows``: tensors, contenders, checks, interleaved times, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import skimattn
import torch

from .cases import counts_of, rounded
from .checks import Check
from .compare import comparisons, reached
from .contender import Contender, kernel_of
from .names import DENSE, THRESHOLD, stat_name
from .peers import NotRun, reason_of
from .prefill_calls import Maker, call_of, ours
from .prefill_checks import check_output, sampled
from .prefill_inputs import Data, data_of
from .prefill_work import Work
from .timing import Call, Repeated, Summary, Timer, interleave

ROW_MS = 2500.0  # of timed calls in a row, so that a table of 50 rows is done in minutes
LEAST_ROUNDS = 5  # of a row whose calls are long
_SAMPLE_MS, _MOST_CALLS = 1.0, 10
_GUESSED_FLOPS_PER_MS = 6e11


@dataclass
class Bench:
    """What every row of a run shares.

    Args:
        device: of the tensors.
        timer: measures rounds in milliseconds.
        repeats: rounds, if they take no longer than ``row_ms``.
        makers: the peers that are there.
        row_ms: how long the rounds of a row may take in all, if there are more than a few.
        not_run: is added to.
    """

    device: str
    timer: Timer
    repeats: int
    makers: Mapping[str, Maker]
    row_ms: float = ROW_MS
    not_run: list[NotRun] = field(default_factory=list)


def calls_of(work: Work) -> int:
    """Calls in a row that make one sample: several of what is too short for a pair of events."""
    return min(_MOST_CALLS, math.ceil(_SAMPLE_MS * _GUESSED_FLOPS_PER_MS / work.flops))


def rounds_of(round_ms: float, bench: Bench) -> int:
    """Rounds, if one takes ``round_ms``."""
    return min(bench.repeats, max(LEAST_ROUNDS, int(bench.row_ms / round_ms)))


def measure(work: Work, bench: Bench) -> dict[str, Any]:
    """Check and time one row; the result is plain data for the result file."""
    run = _Run(work, bench, data_of(work, bench.device))
    for item in run.contenders():
        run.prepare(item)
    run.count()
    calls = calls_of(work)
    times = _times(run.ready, calls, bench)
    return {
        "case": work.label,
        "group": work.group,
        "line": work.line,
        "planted": work.planted,
        **_shape(work),
        "calls_per_sample": calls,
        "kernels": run.kernels,
        "counts": run.counts,
        "rows": [_row(name, samples, work) for name, samples in times.items()],
        "comparisons": [*comparisons(times)],
        "goals": [reached(goal, times) for goal in work.goals],
        "checks": [check.plain for check in run.checks],
    }


def _times(ready: Mapping[str, Contender], calls: int, bench: Bench) -> dict[str, list[float]]:
    """Milliseconds of a call of each contender, round by round."""
    if not ready:
        return {}
    packed = {name: Repeated(item.call, calls) for name, item in ready.items()}
    return {name: [ms / calls for ms in samples] for name, samples in sampled_times(packed, bench).items()}


def sampled_times(packed: Mapping[str, Call], bench: Bench) -> dict[str, list[float]]:
    """Milliseconds of each sample, after a round of warm-up that tells how many fit the time."""
    warm = bench.timer.round([*packed.values()])  # what this round takes is what the next ones will
    return interleave(packed, rounds_of(sum(warm), bench), bench.timer, warmup=0)


class _Run:
    """The contenders of one row; what fails is taken out and named."""

    def __init__(self, work: Work, bench: Bench, data: Data) -> None:
        self.work, self.bench, self.data = work, bench, data
        self.wanted = sampled(work, data)
        self.ready: dict[str, Contender] = {}
        self.dense: torch.Tensor | None = None
        self.kernels: dict[str, dict[str, object]] = {}
        self.counts: dict[str, object] | None = None
        self.checks: list[Check] = []

    def contenders(self) -> Iterator[Contender]:
        """Ours first: the others are compared with our dense kernel."""
        yield from ours(self.work, self.data)
        for name in self.work.peers:
            if make := self.bench.makers.get(name):
                try:
                    yield from make(self.work, self.data)
                except Exception as error:  # a peer that refuses the row must not end the run
                    self._not_run(name, error)

    def prepare(self, item: Contender) -> None:
        """Call it once and check what that leaves in an output full of NaN, where the output is given."""
        try:
            if item.poison is not None:
                item.poison()
            out = item.call().flatten(0, -3)
            checks = [*check_output(item.name, out, self.wanted, self.work, self.dense)]
            if item.params is not None:
                self.kernels[item.name] = kernel_of(item.params)
        except Exception as error:  # the row's other contenders are still worth the machine's time
            self._not_run(item.name, error)
            return
        self.checks += checks
        self.ready[item.name] = item
        if item.name == DENSE:
            self.dense = out

    def count(self) -> None:
        """Where tiles were planted: that the stat kernel, which is not timed, finds them all."""
        if self.data.planted is None:
            return
        name = stat_name(THRESHOLD)
        try:
            params = call_of(self.work, self.data, THRESHOLD, count=True)
            skimattn.launch(params)
            self.counts, checks = counts_of(name, params, self.data.planted, self.work.shape)
        except Exception as error:
            self._not_run(name, error)
        else:
            self.checks += checks

    def _not_run(self, name: str, error: Exception) -> None:
        self.bench.not_run.append(NotRun(name, self.work.label, reason_of(error)))


def _shape(work: Work) -> dict[str, object]:
    names = ("heads_q", "heads_kv", "head_dim", "head_dim_v", "mask", "window", "page", "dtype", "batch", "flops")
    values = {"keys": [min(work.lens), max(work.lens)], "queries": [min(work.rows), max(work.rows)]}
    return {name: getattr(work, name) for name in names} | values


def _row(name: str, samples: Sequence[float], work: Work) -> dict[str, object]:
    ms = Summary.of(samples)
    return {"name": name, "ms": rounded(ms), "tflops": round(work.flops / ms.median / 1e9, 1)}
