"""Reading what a ``StatLog`` wrote, of all ranks, also where it ends in the middle of a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import expected
from ..policy import PHASES, Phase
from .ranks import rank_path

FORMAT = 1
Tiles = NDArray[np.int64]


def summary_path(path: Path) -> Path:
    """Where the summary of a log stands."""
    return path.with_name(f"{path.stem}.summary.json")


@dataclass(frozen=True)
class Statistics:
    """A log, added up over ranks.

    Attributes:
        layers: their names.
        rules: of each layer, by phase ``[factor, length_power]``, at the beginning.
        steps: numbers of the steps, rising.
        tiles: (visited, skipped) by step and layer, int64 ``[steps, layers, 2]``, of each phase.
        requests: by step ``[steps]``, of each phase.
        tokens: likewise.
        ranks: how many files there were.
        lost: steps that the device failed in, and why.
    """

    layers: tuple[str, ...]
    rules: tuple[Mapping[str, Any], ...]
    steps: tuple[int, ...]
    tiles: Mapping[Phase, Tiles]
    requests: Mapping[Phase, Tiles]
    tokens: Mapping[Phase, Tiles]
    ranks: int
    lost: int
    failure: str | None

    def shares(self, phase: Phase) -> NDArray[np.float64]:
        """The skipped share by layer and step, ``[layers, steps]``; NaN where nothing was visited."""
        visited, skipped = self.tiles[phase][..., 0].T, self.tiles[phase][..., 1].T
        return np.where(visited > 0, skipped / np.maximum(visited, 1), np.nan)


def read_statistics(path: str | Path) -> Statistics:
    """The statistics of a log and of the logs of other ranks beside it.

    Raises:
        ArgumentError: it is no log.
        OSError: it cannot be read.
    """
    first = list(_rows(Path(path)))
    header = first[0]
    files = [first]
    for rank in range(1, int(header["world"]) if header["rank"] == 0 else 1):
        other = rank_path(Path(path), rank)
        if other.exists():
            files.append(list(_rows(other)))
    numbers = sorted({row["step"] for rows in files for row in rows if "step" in row})
    place, layers = {number: index for index, number in enumerate(numbers)}, len(header["layers"])
    tiles = {phase: np.zeros((len(numbers), layers, 2), dtype=np.int64) for phase in PHASES}
    sums = {key: {phase: np.zeros(len(numbers), dtype=np.int64) for phase in PHASES} for key in ("requests", "tokens")}
    for index, rows in enumerate(files):
        for row in (row for row in rows if "step" in row):
            at = place[row["step"]]
            for phase, counts in row["tiles"].items():
                tiles[phase][at] += np.array(counts, dtype=np.int64)
            for key in sums if index == 0 or not header["same_requests"] else ():
                for phase, number in row.get(key, {}).items():
                    sums[key][phase][at] += number
    lost = [row for rows in files for row in rows if "lost" in row]
    return Statistics(
        layers=tuple(header["layers"]),
        rules=tuple(header["rules"]),
        steps=tuple(numbers),
        tiles=tiles,
        requests=sums["requests"],
        tokens=sums["tokens"],
        ranks=len(files),
        lost=sum(row["lost"] for row in lost),
        failure=next((row["failure"] for row in lost), None),
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are whole; the header first."""
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        rows = [json.loads(line) for line in lines]
        is_log = rows[0]["format"] == FORMAT and all(key in rows[0] for key in ("layers", "rank", "world", "rules"))
    except (ValueError, TypeError, KeyError, IndexError):
        is_log = False
    if not is_log:
        raise expected(str(path), "a log that StatLog wrote", "something else")
    yield from rows
