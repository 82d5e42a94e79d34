"""How counts get from workers to the process that shows them: a few numbers in a file for each rank.

A folder is made by the first process that loads the plug-in; its children find it in their environment.
"""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

from skimattn.codegen import variables

from ...sparse.policy import PHASES, Phase

INHERITED = "SKIMATTN_CHANNEL"  # set here, for children
_FORM = struct.Struct(f"<{2 * len(PHASES)}q")
Tiles = dict[Phase, tuple[int, int]]


def open_channel() -> Path:
    """The folder of this process and its children."""
    known = variables.text(INHERITED)
    if known is None:
        known = os.environ[INHERITED] = tempfile.mkdtemp(prefix="skimattn-")
        atexit.register(_remove, known, os.getpid())
    return Path(known)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def write_tiles(folder: Path, engine: int, rank: int, tiles: list[int]) -> None:
    """Replace what a rank has counted: (visited, skipped) of each phase, in one list."""
    file = folder / f"engine{engine}.rank{rank}.tiles"
    new = file.with_suffix(".new")
    with suppress(FileNotFoundError):  # whoever made the folder has gone: nobody asks any more
        new.write_bytes(_FORM.pack(*tiles))
        new.replace(file)


def read_tiles(folder: Path, engine: int | None = None) -> Tiles:
    """(visited, skipped) by phase, of all ranks of an engine, or of all engines, together."""
    sums = [0] * (2 * len(PHASES))
    for file in folder.glob(f"engine{'*' if engine is None else engine}.rank*.tiles"):
        sums = [old + new for old, new in zip(sums, _FORM.unpack(file.read_bytes()), strict=True)]
    return by_phase(sums)


def tiles() -> Tiles:
    """(visited, skipped) tiles by phase, of the engines that this process has started; half a second old at most."""
    return read_tiles(open_channel())


def by_phase(tiles: list[int]) -> Tiles:
    """(visited, skipped) by phase, from one list."""
    return {phase: (tiles[2 * index], tiles[2 * index + 1]) for index, phase in enumerate(PHASES)}


def first_to_report(folder: Path) -> bool:
    """Whether this caller is the first one that asks: several API servers would count everything several times."""
    try:
        (folder / "reporter").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
