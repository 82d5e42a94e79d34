"""Runs tasks in every way that was asked for, and keeps what is finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from ...errors import expected
from ...sparse.calibration.state import State
from ...sparse.config.config import SkipSoftmaxConfig
from ...sparse.policy import PHASES, Phase
from .engines import Engine, Running, Tiles
from .tasks import Asked

DENSE, CONFIGURED = "dense", "config"


@dataclass(frozen=True)
class Way:
    """How a model runs: dense, as its configuration has it, or with another target in it."""

    name: str
    config: SkipSoftmaxConfig | None
    target: float | None = None


@dataclass(frozen=True)
class Result:
    """A task in one way.

    Attributes:
        scores: by metric, with their standard errors (None: one document, or lm-eval knows none).
        documents: how many were run.
        tiles: visited and skipped ones by phase; of a dense run none.
        seconds: it took.
    """

    way: str
    task: str
    scores: Mapping[str, tuple[float, float | None]]
    documents: int
    tiles: Tiles
    seconds: float

    def sparsity(self, phase: Phase) -> float | None:
        """The skipped share of the visited tiles; None where none was visited."""
        visited, skipped = self.tiles.get(phase, (0, 0))
        return skipped / visited if visited else None


def ways_of(config: SkipSoftmaxConfig, targets: Sequence[float] | None) -> list[Way]:
    """Dense, then each target; without targets, what the configuration holds.

    Raises:
        ArgumentError: it has no fit that a target could be put into, or what it was calibrated for is fixed.
    """
    if targets is None:
        return [Way(DENSE, None), Way(CONFIGURED, config)]
    phases = [phase for phase in PHASES if phase in config.fit]
    if not phases:
        raise expected("targets", "a configuration with a fit, such as skimattn calibrate writes", "one without")
    if any(setting.says_something for setting in config.patterns.values()):
        raise expected("targets", "a configuration without thresholds of layers or heads", "one chosen for its target")
    ways = [Way(DENSE, None)]
    for target in targets:
        values = {name: value for name, value in config.model_dump(exclude_defaults=True).items() if name not in _SAID}
        asked = SkipSoftmaxConfig(**values, target_sparsity=dict.fromkeys(phases, target))
        ways.append(Way(f"{target:g}", asked, target))
    return ways


_SAID = ("threshold", "scale_factor", "target_sparsity")


def settings(model: str, dtype: str, engine: str, asked: Asked, config: SkipSoftmaxConfig) -> dict[str, Any]:
    """What results depend on, but which tasks and targets there are: more of them may be asked for later."""
    values = asdict(asked)
    del values["names"]
    values["data"] = [sha256(file.read_bytes()).hexdigest() for file in asked.data]
    document = json.dumps(config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    own = {"model": model, "dtype": dtype, "engine": engine, "config": sha256(document.encode()).hexdigest()}
    return {**own, **values, "lm-eval": version("lm_eval")}


def run(
    engine: Engine,
    tasks: Mapping[str, Any],
    ways: Sequence[Way],
    asked: Asked,
    state: State,
    tell: Callable[[int, int, str], None],
) -> list[Result]:
    """All tasks in all ways, those that the state has left out; each is kept when it is done.

    Raises:
        ArgumentError: a configuration cannot be had in the model.
    """
    done = {(way.name, task): state.get(f"{way.name} {task}") for way in ways for task in tasks}
    for way in ways:
        missing = [task for task in tasks if done[way.name, task] is None]
        if not missing:
            continue
        with engine.running(way.config) as running:
            before: Tiles = running.tiles()
            for name in missing:
                tell(sum(one is not None for one in done.values()), len(done), f"{way.name}: {name}")
                result, before = _one(running, before, tasks[name], asked)
                done[way.name, name] = result
                state.put(f"{way.name} {name}", result)
    return [_result(way, task, value) for (way, task), value in done.items()]


def _one(running: Running, before: Tiles, task: Any, asked: Asked) -> tuple[dict[str, Any], Tiles]:
    """A task's result as plain values, and what was counted until then."""
    from lm_eval.evaluator import evaluate

    start = time.perf_counter()
    name = task.task_name
    found = evaluate(
        running.lm,
        {"tasks": {name: task}},
        limit=asked.limit,
        bootstrap_iters=100,
        log_samples=False,
        apply_chat_template=asked.chat,
    )
    seconds = time.perf_counter() - start
    after = running.tiles()
    tiles = {
        phase: [now - then for now, then in zip(after[phase], before.get(phase, (0, 0)), strict=True)]
        for phase in after
    }
    scores = _scores(found["results"][name])
    documents = found["n-samples"][name]["effective"]
    return {"scores": scores, "documents": documents, "tiles": tiles, "seconds": seconds}, after


def _scores(values: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Metrics with their standard errors; RULER's of lengths that were not run are -1, and left out."""
    found: dict[str, list[float | None]] = {}
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float) or value < 0:
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        found[metric] = [float(value), float(error) if isinstance(error, int | float) else None]
    lengths = {metric: pair for metric, pair in found.items() if metric.isdigit()}
    return lengths or dict(list(found.items())[:1])  # LongBench has the same score under two names


def _result(way: str, task: str, value: Mapping[str, Any]) -> Result:
    tiles: dict[Phase, tuple[int, int]] = {phase: (pair[0], pair[1]) for phase, pair in value["tiles"].items()}
    scores = {metric: (pair[0], pair[1]) for metric, pair in value["scores"].items()}
    return Result(way, task, scores, value["documents"], tiles, value["seconds"])
