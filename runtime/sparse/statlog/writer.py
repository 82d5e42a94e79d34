"""The thread that waits for counts and writes them, so that nobody else does."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..policy import PHASES
from .counters import Counters, Slot

LOGGER = logging.getLogger("skimattn")


class Writer:
    """Writes a line of JSON for each step as its counts arrive; whole lines, handed to the system at once.

    A process that is killed loses the steps that were under way: at most as many as there are slots. Where the
    device fails, what has arrived stays, and a last line says what went wrong.

    Args:
        path: the file, which is begun anew.
        header: its first line.
        slots: steps that may be under way; the next one waits for the oldest.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], slots: int) -> None:
        """Write the header, and start the thread."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._line(header)
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for _ in range(slots):
            self._free.put(Slot())
        self._under_way: queue.SimpleQueue[tuple[Slot, Mapping[str, Any]] | None] = queue.SimpleQueue()
        self._before: torch.Tensor | None = None
        self.total: torch.Tensor | None = None
        self.failure: str | None = None
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="skimattn-statlog", daemon=True)
        self._thread.start()

    def put(self, counters: Counters, row: Mapping[str, Any]) -> None:
        """Begin to copy the counters; ``row`` is what else stands in the line."""
        slot = self._free.get()
        try:
            slot.take(counters)
        except RuntimeError as error:  # the device failed earlier, which whoever uses it finds out too
            self.failure = self.failure or str(error)
        self._under_way.put((slot, row))

    def close(self, timeout: float | None = None) -> None:
        """Write what is still under way, and end; does nothing the second time."""
        if self._file.closed:
            return
        self._under_way.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            LOGGER.warning("%s: what the device has not done yet is left out", self._file.name)
            return
        if self.lost:
            self._line({"lost": self.lost, "failure": self.failure})
            LOGGER.warning("%s: %d steps were lost: %s", self._file.name, self.lost, self.failure)
        self._file.close()

    def _run(self) -> None:
        while (found := self._under_way.get()) is not None:
            slot, row = found
            try:
                if self.failure is None:
                    self._write(slot.wait(), row)
            except (RuntimeError, OSError) as error:  # of the device, or of the disk
                self.failure = str(error)
            self.lost += self.failure is not None
            self._free.put(slot)

    def _write(self, counts: torch.Tensor, row: Mapping[str, Any]) -> None:
        step = counts if self._before is None else counts - self._before
        self._before = self.total = counts
        tiles = {phase: step[:, index].tolist() for index, phase in enumerate(PHASES) if bool(step[:, index].any())}
        self._line({**row, "tiles": tiles})

    def _line(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
