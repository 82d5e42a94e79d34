"""One measured row of ``bench skip``, in two passes: what the stat kernel counts, and how fast the skip kernel is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import skimattn
import torch

from .cases import rounded
from .checks import Check, check_counts, relative_error
from .compare import reached
from .contender import kernel_of
from .goal import Goal
from .names import DENSE, skip_name, stat_name
from .peers import NotRun, reason_of
from .prefill_measure import sampled_times
from .skip_calls import Bench, Outputs, Subject, subject_of
from .skip_reference import beside_reference
from .skip_work import OF_BOUND, Point, Work
from .timing import Call, Summary, speed_over

Times = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Counted:
    """What a threshold makes the stat kernel count, in all layers or in one step."""

    visited: int
    skipped: int

    @property
    def sparsity(self) -> float:
        """The skipped share of the visited tiles."""
        return self.skipped / max(self.visited, 1)


def measure(work: Work, bench: Bench) -> dict[str, Any]:
    """Count, check and time one row; the result is plain data for the result file."""
    run = _Run(work, bench, subject_of(work, bench))
    for index in range(len(work.points)):
        run.guarded(stat_name(work.points[index].threshold), run.count, index)
    times = run.time()
    run.guarded("reference", run.beside_reference)
    dense = times.get(DENSE)
    points = [_point(run, times, point) for point in work.points]
    missing = sum(point["visited"] is None or point["ms"] is None for point in points)
    run.checks.append(Check("ours", "thresholds that were not counted or not timed", missing, 0))
    return {
        "case": work.label,
        "group": work.group,
        "shape": work.call.label,
        "inputs": work.inputs,
        **_shape(work),
        "kernels": run.kernels,
        "left_out": [*work.left_out],
        "dense": rounded(Summary.of(dense)) if dense else None,
        "points": points,
        "goals": _goals(run, times),
        "checks": [check.plain for check in run.checks],
        "under_load": bench.under_load(run.packed[DENSE], run.sample_ms) if dense else None,
    }


class _Run:
    """The passes of one row; what fails is taken out and named."""

    def __init__(self, work: Work, bench: Bench, subject: Subject) -> None:
        self.work, self.bench, self.subject = work, bench, subject
        self.counted: dict[float, Counted] = {}
        self.changed: dict[float, float] = {}
        self.packed: dict[str, Call] = {}
        self.often: dict[str, int] = {}
        self.kernels: dict[str, dict[str, object]] = {}
        self.checks: list[Check] = []
        self.sample_ms = 0.0

    def guarded(self, name: str, step: Any, *arguments: object) -> None:
        """A step whose failure does not end the row."""
        try:
            step(*arguments)
        except Exception as error:  # the row's other thresholds are still worth the machine's time
            self.bench.not_run.append(NotRun(name, self.work.label, reason_of(error)))

    def count(self, index: int) -> None:
        """The first pass, of one threshold."""
        threshold = self.work.points[index].threshold
        calls = self.subject.calls(threshold, count=True)[: self.subject.counted]
        for params in calls:
            skimattn.launch(params)
        sums = torch.stack([params.stats for params in calls if params.stats is not None]).sum(0)
        visited, skipped = (int(count) for count in sums.tolist())
        self.counted[threshold] = Counted(visited, skipped)
        self.kernels[stat_name(threshold)] = kernel_of(calls[0])
        expected = self.subject.expected(calls[0], index)
        if expected is not None:
            wanted = skipped if expected[1] is None else expected[1]
            self.checks += check_counts(stat_name(threshold), (visited, skipped), (expected[0], wanted))

    def time(self) -> dict[str, list[float]]:
        """The second pass: milliseconds of the row by name, round by round."""
        dense: list[Outputs] = []
        self.guarded(DENSE, self._prepare, None, dense)
        for point in self.work.points if dense else ():
            self.guarded(skip_name(point.threshold), self._prepare, point.threshold, dense)
        dense.clear()
        if DENSE not in self.packed:
            return {}
        sampled = sampled_times(self.packed, self.bench)
        self.sample_ms = Summary.of(sampled[DENSE]).median
        return {name: [ms / self.often[name] for ms in samples] for name, samples in sampled.items()}

    def _prepare(self, threshold: float | None, dense: list[Outputs]) -> None:
        """Call once, check what that leaves, and pack."""
        name = DENSE if threshold is None else skip_name(threshold)
        calls = self.subject.calls(threshold)
        outputs = self.subject.outputs(calls)
        self.kernels[name] = kernel_of(calls[0])
        if threshold is None:
            self.checks += self.subject.checks(outputs)
            dense.append([out.clone() for out in outputs])
        else:
            # What is skipped is a share of the output, as large as the threshold allows: told, and no error.
            self.changed[threshold] = max(map(relative_error, outputs, dense[0]))
            unwritten = sum(int((~torch.isfinite(out)).sum()) for out in outputs)
            self.checks.append(Check(name, "elements that are not finite", unwritten, 0))
        self.packed[name], self.often[name] = self.subject.packed(calls)

    def beside_reference(self) -> None:
        """Both kernels at reduced size."""
        self.checks += beside_reference(self.work, self.bench)


def _point(run: _Run, times: Times, at: Point) -> dict[str, object]:
    """What came out at a threshold; None where a pass did not run."""
    counted, samples = run.counted.get(at.threshold), times.get(skip_name(at.threshold))
    return {
        "factor": float(f"{at.factor:.6g}"),
        "threshold": float(f"{at.threshold:.6g}"),
        "share": at.share,
        "visited": counted.visited if counted else None,
        "skipped": counted.skipped if counted else None,
        "sparsity": round(counted.sparsity, 4) if counted else None,
        "allowed": round(run.work.allowed(counted.sparsity), 4) if counted else None,
        "ms": rounded(Summary.of(samples)) if samples else None,
        "speed": rounded(speed_over(samples, times[DENSE])) if samples else None,
        "changed": float(f"{run.changed[at.threshold]:.3g}") if samples else None,
    }


def _goals(run: _Run, times: Times) -> list[dict[str, object]]:
    """Real inputs must reach a share of what their sparsity allows."""
    if run.work.inputs != "real":
        return []
    bars = {t: round(OF_BOUND * run.work.allowed(counted.sparsity), 4) for t, counted in run.counted.items()}
    return [reached(Goal(skip_name(threshold), DENSE, bar), times) for threshold, bar in bars.items()]


def _shape(work: Work) -> dict[str, object]:
    call = work.call
    names = ("heads_q", "heads_kv", "head_dim", "head_dim_v", "window", "page", "batch")
    dtype = getattr(call, "dtype", None) or getattr(call, "cache", None)
    phase = "prefill" if hasattr(call, "dtype") else "decode"
    layers = len(work.layers.numbers) if work.layers else 1
    values = {"phase": phase, "mask": getattr(call, "mask", "causal"), "dtype": dtype, "length": work.length}
    return {name: getattr(call, name) for name in names} | values | {"layers": layers}
