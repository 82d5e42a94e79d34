"""Visited and skipped tiles by phase on vLLM's metrics endpoint; imported by vLLM, by its stat-logger entry point.

Workers are other processes than the one that answers: what they count comes through files (:mod:`._channel`). A logger
of vLLM's own kind works with one API server and with several; prometheus_client's multi-process mode alone would have
to be chosen by whoever starts the server, before anything is imported.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import REGISTRY, Counter
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from ...sparse.policy import PHASES
from ._channel import first_to_report, open_channel, read_tiles

VISITED, SKIPPED = "skimattn_tiles_visited", "skimattn_tiles_skipped"
_LABELS = ("model_name", "engine", "phase")


class TileMetrics(AggregateStatLoggerBase):
    """Counters ``skimattn_tiles_visited_total`` and ``skimattn_tiles_skipped_total``. Arguments are vLLM's."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        """Make the counters, of all phases."""
        self._channel = open_channel()
        self._engines = list(engine_indexes)
        self._reports = first_to_report(self._channel)
        name = vllm_config.model_config.served_model_name
        self._model = name[0] if isinstance(name, list) else str(name)
        self._shown: dict[tuple[int, str], tuple[int, int]] = {}
        if self._reports:
            self._counters = (
                _counter(VISITED, "Tiles of keys that attention looked at."),
                _counter(SKIPPED, "Tiles of keys that attention skipped."),
            )
            self._update()

    def record(self, *arguments: Any, **named: Any) -> None:
        """Show what has been counted since the last time; vLLM calls this for every batch of outputs."""
        del arguments, named
        self._update()

    def log(self) -> None:
        """Likewise; vLLM calls this every ten seconds."""
        self._update()

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def _update(self) -> None:
        if not self._reports:
            return
        for engine in self._engines:
            for phase, tiles in read_tiles(self._channel, engine).items():
                before = self._shown.get((engine, phase), (0, 0))
                if tiles[0] < before[0]:  # a worker that has begun anew
                    before = (0, 0)
                for counter, old, new in zip(self._counters, before, tiles, strict=True):
                    counter.labels(self._model, str(engine), phase).inc(new - old)
                self._shown[engine, phase] = tiles


def _counter(name: str, text: str) -> Counter:
    """The counter of that name: one process may start several engines."""
    known = getattr(REGISTRY, "_names_to_collectors", {}).get(name)
    return known if isinstance(known, Counter) else Counter(name, f"{text} By phase: {', '.join(PHASES)}.", _LABELS)
