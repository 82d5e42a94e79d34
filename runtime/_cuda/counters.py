"""Work counters of the kernels' tile schedulers: one uint32 in device memory that no two launches use at once.

A kernel finds its counter at zero and leaves it at zero, so launches that follow each other on one stream share a
counter. Streams are told apart by the driver's stream id, which is never reused, unlike a handle. A launch that is
captured into a graph may be replayed on any stream and next to anything, so it takes a counter of its own, for good
(4 bytes). Two executable graphs made from one captured graph must therefore not run at the same time.

Counters come in chunks of 65536. The first launch on a device allocates and clears one: the only allocation beyond
outputs that launches make, once per device (again after 65536 captured launches), and never part of a capture.
"""

from __future__ import annotations

import threading

from . import driver, streams

CHUNK = 1 << 16
_BYTES = 4
_LEGACY_ID = -1  # of the default stream, which has no other handle


class WorkCounters:
    """The counters of one device. Methods may be called from any thread with the device's context current."""

    def __init__(self) -> None:
        """Nothing is allocated before the first launch."""
        self._lock = threading.Lock()
        self._by_stream: dict[int, int] = {}
        self._next = self._end = 0

    def of_launch(self, stream: int) -> int:
        """Address of the counter for a launch on the stream with this handle: its own, or a fresh one in a capture."""
        if stream == streams.LEGACY:  # cannot be captured
            return self.of_stream(_LEGACY_ID)
        cuda = driver.bindings()
        status, capturing = cuda.cuStreamIsCapturing(stream)
        if status:
            driver.raise_for("cuStreamIsCapturing", status)
        if int(capturing):
            return self.of_captured_launch()
        status, stream_id = cuda.cuStreamGetId(stream)
        if status:
            driver.raise_for("cuStreamGetId", status)
        return self.of_stream(int(stream_id))

    def of_stream(self, stream_id: int) -> int:
        """Address of the counter that all launches on one stream share."""
        address = self._by_stream.get(stream_id)
        if address is None:
            with self._lock:
                address = self._by_stream.get(stream_id) or self._take()
                self._by_stream[stream_id] = address
        return address

    def of_captured_launch(self) -> int:
        """Address of a counter that no other launch uses."""
        with self._lock:
            return self._take()

    def _take(self) -> int:
        if self._next == self._end:
            self._next = _cleared_chunk()
            self._end = self._next + CHUNK * _BYTES
        self._next += _BYTES
        return self._next - _BYTES


def _cleared_chunk() -> int:
    """Device memory for a chunk, set to zero on a stream of its own."""
    with driver.outside_capture():
        address = driver.call("cuMemAlloc", CHUNK * _BYTES)
        stream = driver.call("cuStreamCreate", driver.bindings().CUstream_flags.CU_STREAM_NON_BLOCKING.value)
        driver.call("cuMemsetD32Async", address, 0, CHUNK, stream)
        driver.call("cuStreamSynchronize", stream)
        driver.call("cuStreamDestroy", stream)
    return int(address)
