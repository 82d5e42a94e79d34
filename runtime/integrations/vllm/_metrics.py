"""Visited and skipped tiles by phase on vLLM's metrics endpoint; imported by vLLM, by its stat-logger entry point.

Workers are other processes than the one that answers: what they count comes through files (``serving.channel``). A
logger of vLLM's own kind works with one API server and with several; prometheus_client's multi-process mode alone would
have to be chosen by whoever starts the server, before anything is imported.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from ..serving.channel import first_to_report, open_channel, read_tiles
from ..serving.counters import TileCounters


class TileMetrics(AggregateStatLoggerBase):
    """Counters ``skimattn_tiles_visited_total`` and ``skimattn_tiles_skipped_total``. Arguments are vLLM's."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        """Make the counters, of all phases."""
        self._channel = open_channel()
        self._engines = list(engine_indexes)
        name = vllm_config.model_config.served_model_name
        self._counters: TileCounters | None = None
        if first_to_report(self._channel):
            self._counters = TileCounters(name[0] if isinstance(name, list) else str(name))
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
        if self._counters is not None:
            for engine in self._engines:
                self._counters.show(engine, read_tiles(self._channel, engine))
