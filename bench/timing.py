"""Interleaved timing and its statistics. What is compared runs alternately, in one process, on the same inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

Call = Callable[[], object]
_SPIN_CYCLES = 1_000_000  # about half a millisecond of waiting per call, so that the device starts behind the host


@dataclass(frozen=True)
class Summary:
    """Samples in short, in the unit of the samples."""

    n: int
    median: float
    min: float
    max: float
    p10: float
    p90: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Summarise; ``ValueError`` without samples."""
        if not samples:
            raise ValueError("samples: expected at least one (got none)")
        ordered = sorted(samples)
        middle = statistics.median(ordered)
        return cls(len(ordered), middle, ordered[0], ordered[-1], percentile(ordered, 10), percentile(ordered, 90))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """A percentile of ascending samples, interpolated between neighbours."""
    at = (len(ordered) - 1) * percent / 100
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def speed_over(times: Sequence[float], others: Sequence[float]) -> Summary:
    """How much faster ``times`` is than ``others``: the ratio of the times inside each round, summarised."""
    return Summary.of([other / own for own, other in zip(times, others, strict=True)])


@dataclass(frozen=True)
class Repeated:
    """``count`` calls of one in a row, as one sample of what is too short for one."""

    call: Call
    count: int

    def __call__(self) -> None:
        """Enqueue them."""
        for _ in range(self.count):
            self.call()


def round_order(names: Sequence[str], index: int) -> list[str]:
    """The order of round ``index``: the start rotates every second round, and the rounds between go backwards.

    So each takes every place, and none always follows the same neighbour, whose heat or cache it would inherit.
    """
    start = index // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if index % 2 else order


class Timer(Protocol):
    """Measures one round."""

    def round(self, calls: Sequence[Call]) -> list[float]:
        """Run ``calls`` in this order; the time of each."""
        ...


def interleave(calls: Mapping[str, Call], repeats: int, timer: Timer, warmup: int = 2) -> dict[str, list[float]]:
    """Times per name, one sample a round, index by index of the same round. Rounds of warm-up are not kept."""
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-warmup, repeats):
        order = round_order(names, index)
        sampled = timer.round([calls[name] for name in order])
        if index >= 0:
            for name, sample in zip(order, sampled, strict=True):
                times[name].append(sample)
    return times


class CudaTimer:
    """Device milliseconds by CUDA events around each call.

    A round is enqueued as a whole behind a short spin: host time of a call (77 us with some peers) stays out of it.
    """

    def round(self, calls: Sequence[Call]) -> list[float]:
        """Milliseconds on the device; waits for it."""
        cuda: Any = torch.cuda
        cuda._sleep(_SPIN_CYCLES * sum(call.count if isinstance(call, Repeated) else 1 for call in calls))
        events = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in calls]
        for call, (start, end) in zip(calls, events, strict=True):
            start.record()
            call()
            end.record()
        cuda.synchronize()
        return [float(start.elapsed_time(end)) for start, end in events]


def graphed(calls: Sequence[Call], count: int) -> Call:
    """A replay of a CUDA graph of ``count`` calls, taken in turn from ``calls``: short ones without their host time."""
    cuda: Any = torch.cuda
    for call in calls:
        call()  # what a first call prepares is not for a capture
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        for index in range(count):
            calls[index % len(calls)]()
    return partial(_replay, graph, tuple(calls))


def _replay(graph: Any, calls: Sequence[Call]) -> object:
    """Note: a graph does not keep the tensors alive that it reads and writes; the calls do."""
    del calls
    return graph.replay()


@dataclass(frozen=True)
class HostTimer:
    """Host microseconds of enqueueing one call: ``launches`` in a row onto an idle device, whose queue never fills."""

    synchronize: Callable[[], object]
    launches: int = 200
    clock: Callable[[], float] = time.perf_counter

    def round(self, calls: Sequence[Call]) -> list[float]:
        """Mean microseconds of each call in its batch; the median over rounds is taken later."""
        return [self._batch(call) for call in calls]

    def _batch(self, call: Call) -> float:
        self.synchronize()
        start = self.clock()
        for _ in range(self.launches):
            call()
        took = self.clock() - start
        self.synchronize()
        return took / self.launches * 1e6


@dataclass(frozen=True)
class StepTimer:
    """Milliseconds of a step by the host's clock, until the device is done: ``steps`` of a kind in a row."""

    synchronize: Callable[[], object]
    steps: int
    clock: Callable[[], float] = time.perf_counter

    def round(self, calls: Sequence[Call]) -> list[float]:
        """Mean milliseconds of each."""
        return [self._steps(call) for call in calls]

    def _steps(self, call: Call) -> float:
        self.synchronize()
        start = self.clock()
        for _ in range(self.steps):
            call()
        self.synchronize()
        return (self.clock() - start) / self.steps * 1e3
