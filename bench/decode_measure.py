"""One measured row of ``bench decode``: caches, contenders, checks, interleaved times, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .cases import rounded
from .checks import Check
from .compare import comparisons, reached
from .contender import kernel_of
from .decode_calls import Maker, Rotation, ours
from .decode_checks import check_outputs, counts_of
from .decode_inputs import Cache, cache_of
from .decode_work import Work
from .names import READ
from .peers import NotRun, reason_of
from .timing import Call, Summary, Timer, interleave

COLD_BYTES = 1_000_000_000  # read between two calls on one cache: twenty times the L2 of an H100
SAMPLE_MS = 2.5  # of work behind one event, at a guess
_GUESSED_BYTES_PER_MS, _GUESSED_LEAST_MS = 2.5e9, 0.008


@dataclass
class Bench:
    """What every row of a run shares.

    Args:
        device: of the tensors.
        timer: measures rounds in milliseconds.
        repeats: rounds.
        pack: makes one call of a number of calls, taken in turn from the given ones: :func:`bench.timing.graphed`.
        makers: the peers that are there.
        read: reads ``read_bytes`` of memory.
        cold_bytes: how much is read at least between two calls on the same copy of a cache.
        sample_ms: of work behind one event, at a guess.
        not_run: is added to.
    """

    device: str
    timer: Timer
    repeats: int
    pack: Callable[[Sequence[Call], int], Call]
    makers: Mapping[str, Maker]
    read: Call
    read_bytes: int
    cold_bytes: int = COLD_BYTES
    sample_ms: float = SAMPLE_MS
    not_run: list[NotRun] = field(default_factory=list)


def copies_of(work: Work, cold_bytes: int) -> int:
    """Caches that calls take in turn, so that each finds none of its own in L2, as in a model of many layers."""
    return math.ceil(cold_bytes / (work.bytes * (1 - (work.planted or 0.0) / 2)))  # skipping reads that much less


def calls_of(work: Work, copies: int, sample_ms: float) -> int:
    """Calls behind one event, as many on each copy."""
    guess = max(_GUESSED_LEAST_MS, work.bytes / _GUESSED_BYTES_PER_MS)
    return copies * math.ceil(sample_ms / guess / copies)


def measure(work: Work, bench: Bench) -> dict[str, Any]:
    """Check and time one row; the result is plain data for the result file."""
    copies = copies_of(work, bench.cold_bytes)
    calls = calls_of(work, copies, bench.sample_ms)
    cache = cache_of(work, copies, bench.device)
    run = _Run(work, bench, cache, calls)
    for item in run.contenders():
        run.prepare(item)
    checks = [*run.checks, *check_outputs(run.outputs, work, cache)]
    run.outputs.clear()
    sampled = interleave({**run.packed, READ: bench.read}, bench.repeats, bench.timer)
    times = {name: [ms / calls for ms in samples] for name, samples in sampled.items() if name != READ}
    share = work.bytes / bench.read_bytes
    reading = {READ: [ms * share for ms in sampled[READ]]}  # had it read as many bytes as the row counts
    return {
        "case": work.label,
        "group": work.group,
        "line": work.line,
        "planted": work.planted,
        **_shape(work),
        "copies": copies,
        "calls_per_sample": calls,
        "read_tbs": round(bench.read_bytes / Summary.of(sampled[READ]).median / 1e9, 3),
        "kernels": run.kernels,
        "counts": run.counts,
        "rows": [_row(name, samples, work) for name, samples in times.items()],
        "comparisons": [*comparisons({**times, **reading})],
        "goals": [reached(goal, {**times, **reading}) for goal in work.goals],
        "checks": [item.plain for item in checks],
    }


class _Run:
    """The contenders of one row; what fails is taken out and named."""

    def __init__(self, work: Work, bench: Bench, cache: Cache, calls: int) -> None:
        self.work, self.bench, self.cache, self.calls = work, bench, cache, calls
        self.packed: dict[str, Call] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self.kernels: dict[str, dict[str, object]] = {}
        self.counts: dict[str, object] | None = None
        self.checks: list[Check] = []

    def contenders(self) -> Iterator[Rotation]:
        yield from ours(self.work, self.cache)
        for name, make in self.bench.makers.items():
            try:
                yield from make(self.work, self.cache)
            except Exception as error:  # a peer that refuses the row must not end the run
                self._not_run(name, error)

    def prepare(self, item: Rotation) -> None:
        """Call it, count, pack it, and keep what the packed calls leave in their output."""
        try:
            item.calls[0]()
            self._look_at(item)
            packed = self.bench.pack(item.calls, self.calls)
            packed()
            item.out.fill_(float("nan"))
            packed()
            self.outputs[item.name] = item.out.clone()
            if item.out.is_cuda:
                torch.cuda.synchronize()
        except Exception as error:  # the row's other contenders are still worth the machine's time
            self.outputs.pop(item.name, None)
            self._not_run(item.name, error)
        else:
            self.packed[item.name] = packed

    def _look_at(self, item: Rotation) -> None:
        if item.params is None:
            return
        self.kernels[item.name] = kernel_of(item.params)
        if item.params.stats is not None:
            self.counts, checks = counts_of(self.work, self.cache, item)
            self.checks += checks

    def _not_run(self, name: str, error: Exception) -> None:
        self.bench.not_run.append(NotRun(name, self.work.label, reason_of(error)))


def _shape(work: Work) -> dict[str, object]:
    names = ("heads_q", "heads_kv", "head_dim", "head_dim_v", "window", "page", "layout", "cache", "batch", "bytes")
    values = {"keys": [min(work.lens), max(work.lens)], "queries": [min(work.rows), max(work.rows)]}
    return {name: getattr(work, name) for name in names} | values


def _row(name: str, samples: Sequence[float], work: Work) -> dict[str, object]:
    us = Summary.of([sample * 1e3 for sample in samples])
    return {"name": name, "us": rounded(us), "tbs": round(work.bytes / us.median / 1e6, 3)}
