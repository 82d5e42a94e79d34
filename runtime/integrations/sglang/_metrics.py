"""Visited and skipped tiles by phase, from a worker to whoever asks.

Whoever started the engine reads them from files (``serving.channel``). SGLang's own endpoint runs prometheus_client in
its multi-process mode, in which every process writes for itself: workers count up there, and the endpoint adds up.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..serving.channel import by_phase, write_tiles


def shown(folder: Path, engine: int, rank: int, endpoint: str | None) -> Callable[[list[int]], None]:
    """What takes the counts of a worker.

    Args:
        folder: the channel.
        engine: its number.
        rank: of this worker.
        endpoint: the model's name, where SGLang shows metrics; None: it shows none.
    """
    counters = None
    if endpoint is not None:
        from ..serving.counters import TileCounters

        counters = TileCounters(endpoint)
        counters.show(engine, by_phase([0, 0, 0, 0]))

    def show(tiles: list[int]) -> None:
        write_tiles(folder, engine, rank, tiles)
        if counters is not None:
            counters.show(engine, by_phase(tiles))

    return show
