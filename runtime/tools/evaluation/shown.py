"""Results of an evaluation as a table, as plain values, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...sparse.calibration import plot
from ...sparse.policy import PHASES
from ...sparse.tables import percent, table
from .running import DENSE, Result

_HEAD = ("task", "way", "skipped in prefill", "in decode", "metric", "score", "+-", "less dense", "documents", "s")


def lines(results: Sequence[Result]) -> list[str]:
    """A row for each task, way and metric, a task's ways beneath each other; then the mean of all tasks."""
    rows = []
    for task in dict.fromkeys(one.task for one in results):
        for one in (one for one in results if one.task == task):
            rows += [_row(one, metric, results) for metric in one.scores]
    means = _means(results)
    if len({one.task for one in results}) > 1:
        for way, mean in means.items():
            less = "" if way == DENSE else f"{mean - means[DENSE]:+.4f}"
            rows.append(("mean", way, "", "", "", f"{mean:.4f}", "", less, "", ""))
    return table(_HEAD, rows)


def _row(one: Result, metric: str, results: Sequence[Result]) -> tuple[str, ...]:
    score, error = one.scores[metric]
    less = _less_dense(one, metric, results)
    skipped = [percent(one.sparsity(phase)) for phase in PHASES]
    shown = (f"{score:.4f}", "" if error is None else f"{error:.4f}", "" if less is None else f"{less:+.4f}")
    return (one.task, one.way, *skipped, metric, *shown, str(one.documents), f"{one.seconds:.1f}")


def _less_dense(one: Result, metric: str, results: Sequence[Result]) -> float | None:
    if one.way == DENSE:
        return None
    dense = next((other for other in results if other.task == one.task and other.way == DENSE), None)
    return None if dense is None or metric not in dense.scores else one.scores[metric][0] - dense.scores[metric][0]


def _means(results: Sequence[Result]) -> dict[str, float]:
    """Of each way, over tasks; a task that has several lengths counts with their mean."""
    found: dict[str, list[float]] = {}
    for one in results:
        scores = [score for score, _ in one.scores.values()]
        found.setdefault(one.way, []).append(math.fsum(scores) / len(scores))
    return {way: math.fsum(scores) / len(scores) for way, scores in found.items()}


def as_values(results: Sequence[Result], about: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain values, with what the results depend on."""
    rows = [
        {
            "task": one.task,
            "way": one.way,
            "scores": {
                metric: {"score": score, "error": error, "less_dense": _less_dense(one, metric, results)}
                for metric, (score, error) in one.scores.items()
            },
            "sparsity": {phase: one.sparsity(phase) for phase in PHASES},
            "tiles": {phase: {"visited": pair[0], "skipped": pair[1]} for phase, pair in one.tiles.items()},
            "documents": one.documents,
            "seconds": one.seconds,
        }
        for one in results
    ]
    return {"settings": dict(about), "means": _means(results), "results": rows}


def points(results: Sequence[Result]) -> dict[str, list[tuple[float, float]]]:
    """Of each task and metric: (skipped share of all tiles, score), in order of the share; dense ones at 0."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in results:
        visited, skipped = (sum(pair[place] for pair in one.tiles.values()) for place in (0, 1))
        for metric, (score, _) in one.scores.items():
            name = one.task if len(one.scores) == 1 else f"{one.task} {metric}"
            found.setdefault(name, []).append((skipped / visited if visited else 0.0, score))
    return {name: sorted(some) for name, some in found.items()}


def check_plot() -> None:
    """Raise ``ModuleNotFoundError``, which says what to install, where matplotlib is missing."""
    plot.check()


def draw(results: Sequence[Result], path: Path) -> None:
    """Scores over what was skipped, a line for each task.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = plot.check()(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for name, some in points(results).items():
        axes.plot([100 * share for share, _ in some], [score for _, score in some], "o-", label=name)
    axes.set(xlabel="skipped tiles, %, prefill and decode together", ylabel="score", ylim=(-0.02, 1.02))
    axes.legend(fontsize="small")
    figure.savefig(path)
