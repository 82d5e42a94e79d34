"""What the runtime keeps per GPU: its primary context, its size and its work counters."""

from __future__ import annotations

import threading
from functools import cached_property

from . import driver
from .counters import WorkCounters

_devices: dict[int, Device] = {}
_lock = threading.Lock()


def device(ordinal: int) -> Device:
    """The device with torch's index ``ordinal``."""
    found = _devices.get(ordinal)
    if found is None:
        with _lock:
            found = _devices.setdefault(ordinal, Device(ordinal))
    return found


class Device:
    """One GPU. The primary context is the one torch uses; it is retained for the life of the process."""

    def __init__(self, ordinal: int) -> None:
        """``ordinal`` is torch's index, which is the driver's."""
        self.ordinal = ordinal
        self.handle = driver.call("cuDeviceGet", ordinal)
        self.context = int(driver.call("cuDevicePrimaryCtxRetain", self.handle))
        self.counters = WorkCounters()

    def attribute(self, name: str) -> int:
        """A ``CU_DEVICE_ATTRIBUTE_*`` value."""
        attribute = getattr(driver.bindings().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(driver.call("cuDeviceGetAttribute", attribute, self.handle))

    @cached_property
    def sm_count(self) -> int:
        """Multiprocessors."""
        return self.attribute("MULTIPROCESSOR_COUNT")

    @cached_property
    def capability(self) -> tuple[int, int]:
        """Compute capability, such as ``(9, 0)``."""
        return self.attribute("COMPUTE_CAPABILITY_MAJOR"), self.attribute("COMPUTE_CAPABILITY_MINOR")
