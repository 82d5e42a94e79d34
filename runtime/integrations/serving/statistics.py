"""Statistics of a worker: what its layers skip step by step, for a log, and in sum, for metrics."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch

from ...sparse import StatLog
from ...sparse.policy import Phase
from ...sparse.statlog.counters import Counters, Slot
from .skipping import Skipping, numbers_by_phase

_SECONDS = 0.5  # between two looks at what was counted
ByPhase = Mapping[Phase, int]


class Statistics:
    """Adds up what the layers of a worker count. A step begins with a batch and ends where the next one begins; without
    a log, where one of other phases begins, so that steps that only generate launch nothing and copy nothing.

    Not every engine says when a step has ended, least of all where graphs are replayed. What metrics show is collected
    by a thread, so it needs no next step; the last step of a log is written when it is said, or the process ends.

    Args:
        modules: by name, those whose policies skip.
        device: of the counts.
        stat_log: a file, or None.
        show: takes (visited, skipped) of each phase, in one list, about twice a second; None: nobody asks.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        device: torch.device,
        stat_log: Path | None,
        show: Callable[[list[int]], None] | None,
    ) -> None:
        """Allocate, and begin the log."""
        self._place = {name: index for index, name in enumerate(modules)}
        self._log = None if stat_log is None else StatLog(stat_log, modules, same_requests=True)
        self._counters = Counters(len(modules)) if self._log is None else self._log.counters
        self._counters.allocate(device)
        self._device, self._show = device, show
        self._lock = threading.Lock()
        self._open: set[Skipping] = set()
        self._places: dict[Skipping, torch.Tensor] = {}
        self._captured: set[Skipping] = set()
        self._numbers: tuple[ByPhase, ByPhase] = {}, {}
        self._stream: Any = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        # Whoever owns this closes it, or the end of the process does, before it closes the log. Children of
        # multiprocessing that were forked leave without what atexit has.
        atexit.register(self.close)
        Finalize(self, self.close, exitpriority=10)

    def begin(self, skipping: Skipping, decodes: torch.Tensor, starts: torch.Tensor, *, real: bool = True) -> None:
        """A batch begins, before its thresholds are set: what came before it is collected.

        Args:
            skipping: the layers that will compute it.
            decodes: bool ``[B]`` on the host, which requests are in the phase decode.
            starts: integers ``[B + 1]`` on the host, where each request begins.
            real: False: a graph is about to be captured, and what that counts is dropped.
        """
        with self._lock:
            if real and self._goes_on(skipping, decodes):
                return
            if skipping in self._open:
                self._end(skipping)
            if skipping in self._captured:
                skipping.forget()
                self._captured.remove(skipping)
            if not real:
                self._captured.add(skipping)
                return
            if not self._open and self._log is not None:
                self._numbers = numbers_by_phase(decodes, starts)
            if skipping not in self._places:
                # Note: once, since such a copy waits for the device.
                places = [self._place[name] for name in skipping.names]
                self._places[skipping] = torch.tensor(places, device=self._device)
            self._open.add(skipping)
            if self._device.type == "cuda":
                self._stream = torch.cuda.current_stream(self._device)
        if self._thread is None and self._show is not None:
            # Not earlier: a graph that is captured bears no other thread's calls.
            self._thread = threading.Thread(target=self._run, name="skimattn-tiles", daemon=True)
            self._thread.start()

    def _goes_on(self, skipping: Skipping, decodes: torch.Tensor) -> bool:
        """Whether what the batch counts may be added to what the one before it has counted."""
        if self._log is not None or skipping not in self._open or skipping in self._captured:
            return False
        return skipping.same_phases(decodes)

    def end(self) -> None:
        """The batch has been launched whole, for engines that say so: its step need not wait for the next one."""
        with self._lock:
            if self._open and self._log is not None:
                self._end_step()

    def close(self) -> None:
        """End the last step, and write everything."""
        atexit.unregister(self.close)
        with self._lock, self._in_order():
            if self._open:
                self._end_step()
        if self._thread is not None and not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            self.publish()
        if self._log is not None:
            self._log.close()
            self._log = None

    def publish(self) -> None:
        """Show sums of all layers; waits for the device."""
        assert self._show is not None
        slot = Slot()
        with self._lock, self._in_order():
            self._collect(self._open)
            slot.take(self._counters)
        self._show(slot.wait().sum(0).flatten().tolist())

    def _in_order(self) -> AbstractContextManager[Any]:
        """Behind what batches launch: other threads, and the end of the process, have a stream of their own."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _end(self, skipping: Skipping) -> None:
        """These layers begin anew. In a log all end together; else the others' batch may be under way already."""
        if self._log is not None:
            self._end_step()
            return
        self._collect((skipping,))
        self._open.remove(skipping)

    def _end_step(self) -> None:
        self._collect(self._open)
        self._open.clear()
        if self._log is not None:
            self._log.step(requests=self._numbers[0], tokens=self._numbers[1])

    def _collect(self, layers: Iterable[Skipping]) -> None:
        """What they were launched with so far, onto the sums."""
        total = self._counters.by_device[self._device]
        for skipping in layers:
            total.index_add_(0, self._places[skipping], skipping.collect())

    def _run(self) -> None:
        while not self._closed.wait(_SECONDS):
            self.publish()
