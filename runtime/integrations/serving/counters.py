"""Visited and skipped tiles by phase as counters of prometheus_client, which both engines show on ``/metrics``."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter

from ...sparse.policy import PHASES
from .channel import Tiles

VISITED, SKIPPED = "skimattn_tiles_visited", "skimattn_tiles_skipped"
_LABELS = ("model_name", "engine", "phase")


class TileCounters:
    """Counters ``skimattn_tiles_visited_total`` and ``skimattn_tiles_skipped_total`` of this process.

    Args:
        model_name: as it is served.
    """

    def __init__(self, model_name: str) -> None:
        """Make them, or find them: one process may start several engines."""
        self._model = model_name
        self._counters = (
            _counter(VISITED, "Tiles of keys that attention looked at."),
            _counter(SKIPPED, "Tiles of keys that attention skipped."),
        )
        self._shown: dict[tuple[int, str], tuple[int, int]] = {}

    def show(self, engine: int, tiles: Tiles) -> None:
        """Add what has been counted since the last time.

        Args:
            engine: its number.
            tiles: all that it has counted.
        """
        for phase, now in tiles.items():
            before = self._shown.get((engine, phase), (0, 0))
            if now[0] < before[0]:  # a worker that has begun anew
                before = (0, 0)
            for counter, old, new in zip(self._counters, before, now, strict=True):
                counter.labels(self._model, str(engine), phase).inc(new - old)
            self._shown[engine, phase] = now


def _counter(name: str, text: str) -> Counter:
    known = getattr(REGISTRY, "_names_to_collectors", {}).get(name)
    return known if isinstance(known, Counter) else Counter(name, f"{text} By phase: {', '.join(PHASES)}.", _LABELS)
