"""What ``skimattn stats`` prints and draws of a log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import expected
from ..sparse.policy import PHASES, Phase
from ..sparse.statlog.read import Statistics, read_statistics
from ..sparse.tables import percent, table
from .tile_map import BLOCKS

_NOTHING = "·"
_CELL = 8  # pixels


def summary(found: Statistics) -> dict[str, Any]:
    """Sums over steps as plain values: by phase and layer raw counts and the share."""
    phases: dict[str, Any] = {}
    for phase in PHASES:
        by_layer = found.tiles[phase].sum(0)
        visited, skipped = (int(one) for one in by_layer.sum(0))
        if visited:
            layers = {name: _counts(*map(int, row)) for name, row in zip(found.layers, by_layer, strict=True)}
            of_phase = _counts(visited, skipped)
            of_phase |= {"requests": int(found.requests[phase].sum()), "tokens": int(found.tokens[phase].sum())}
            phases[phase] = {**of_phase, "layers": layers}
    ends = {"steps": len(found.steps), "ranks": found.ranks, "lost": found.lost, "failure": found.failure}
    return {**ends, "phases": phases}


def _counts(visited: int, skipped: int) -> dict[str, Any]:
    return {"visited": visited, "skipped": skipped, "sparsity": skipped / visited if visited else None}


def lines(path: Path, width: int = 80, shades: str = BLOCKS) -> Iterator[str]:
    """A table of each phase, and a drawing of layers by steps, in which darker = more was skipped.

    Raises:
        ArgumentError: the file is no log.
        OSError: it cannot be read.
    """
    found = read_statistics(path)
    sums = summary(found)
    yield f"{len(found.steps)} steps, {len(found.layers)} layers, {found.ranks} ranks"
    if found.lost:
        yield f"{found.lost} steps were lost: {found.failure}"
    for phase in PHASES:
        of_phase = sums["phases"].get(phase)
        if of_phase is None:
            continue
        yield ""
        rows = [(name, *_row(one)) for name, one in of_phase["layers"].items()]
        yield from table(("layer", "visited", "skipped", "share"), [*rows, ("all", *_row(of_phase))])
        yield f"{phase}: {of_phase['requests']} requests, {of_phase['tokens']} tokens"
        yield from drawing(found, phase, width, shades)
    if not sums["phases"]:
        yield "nothing was counted"


def _row(counts: dict[str, Any]) -> tuple[str, str, str]:
    return str(counts["visited"]), str(counts["skipped"]), percent(counts["sparsity"])


def drawing(found: Statistics, phase: Phase, width: int = 80, shades: str = BLOCKS) -> list[str]:
    """A line for each layer, a character for each step or for several, by the share that was skipped."""
    counts = found.tiles[phase]
    columns = max(1, min(width - 6, len(counts)))
    parts = [part.sum(0) for part in np.array_split(counts, columns)]
    lines = [f"layers down, steps across: blank 0 %, {shades[-1]} 100 % skipped"]
    for layer in range(len(found.layers)):
        lines.append(f"{layer:4}  " + "".join(_shade(part[layer], shades) for part in parts))
    return lines


def _shade(counts: NDArray[np.int64], shades: str) -> str:
    visited, skipped = (int(one) for one in counts)
    if not visited:
        return _NOTHING if shades == BLOCKS else "_"
    return shades[min(int(skipped / visited * len(shades)), len(shades) - 1)]


def write_png(path: Path, found: Statistics) -> None:
    """Draw layers by steps, phases below each other: white = nothing skipped, blue = all, grey = nothing visited.

    Raises:
        ModuleNotFoundError: Pillow is not there; the text says how to get it.
        ArgumentError: nothing was counted.
        OSError: the file cannot be written.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need Pillow: pip install 'skimattn[pictures]'") from error
    drawn = [found.shares(phase) for phase in PHASES if found.tiles[phase].any()]
    if not drawn:
        raise expected("--png", "a log with counts", "none")
    shares = np.concatenate([np.pad(one, ((0, 1), (0, 0)), constant_values=np.nan) for one in drawn])[:-1]
    level, blue = np.nan_to_num(shares)[..., None], np.array([0x1F, 0x4E, 0x79])
    pixels = np.where(np.isnan(shares)[..., None], 0xD0, 255 + (blue - 255) * level).astype(np.uint8)
    Image.fromarray(pixels.repeat(_CELL, 0).repeat(_CELL, 1)).save(path, "PNG")
