"""What the runtime keeps per GPU: its primary context, its size, its loaded kernels and its work counters."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from skimattn.codegen.metadata import Kernel
from skimattn.codegen.spec import KernelSpec

from . import driver, kernels
from .counters import WorkCounters

LOGGER = logging.getLogger("skimattn")


@dataclass(frozen=True)
class Loaded:
    """A kernel on a device: its row and the driver's ``CUfunction``."""

    kernel: Kernel
    function: Any


@dataclass(frozen=True)
class _Library:
    kernel: Kernel
    handle: Any
    library: Any


_libraries: dict[KernelSpec, _Library] = {}
_devices: dict[int, Device] = {}
_lock = threading.RLock()


def device(ordinal: int) -> Device:
    """The device with torch's index ``ordinal``."""
    found = _devices.get(ordinal)
    if found is None:
        with _lock:
            found = _devices.setdefault(ordinal, Device(ordinal))
    return found


def _library(spec: KernelSpec) -> _Library:
    """The library of a kernel, loaded once per process from a cubin whose hash was checked."""
    found = _libraries.get(spec)
    if found is None:
        kernel, cubin = kernels.obtain(spec)
        library = driver.call("cuLibraryLoadData", cubin, [], [], 0, [], [], 0)
        handle = driver.call("cuLibraryGetKernel", library, kernel.entry.encode())
        LOGGER.info("loaded %s (%d bytes, sha256 %s)", kernel.name, len(cubin), kernel.cubin_sha256[:16])
        found = _libraries.setdefault(spec, _Library(kernel, handle, library))
    return found


class Device:
    """One GPU. The primary context is the one torch uses; it is retained for the life of the process."""

    def __init__(self, ordinal: int) -> None:
        """``ordinal`` is torch's index, which is the driver's."""
        self.ordinal = ordinal
        self.handle = driver.call("cuDeviceGet", ordinal)
        self.context = int(driver.call("cuDevicePrimaryCtxRetain", self.handle))
        self.counters = WorkCounters()
        self._loaded: dict[KernelSpec, Loaded] = {}

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

    def kernel(self, spec: KernelSpec) -> Loaded:
        """The kernel, loaded into this device's context with its shared memory allowed; see :func:`kernels.obtain`."""
        loaded = self._loaded.get(spec)
        if loaded is None:
            with _lock, driver.current_context(self.context), driver.outside_capture():
                loaded = self._loaded.setdefault(spec, self._load(_library(spec)))
        return loaded

    def _load(self, library: _Library) -> Loaded:
        smem = driver.bindings().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driver.call("cuKernelSetAttribute", smem, library.kernel.smem_bytes, library.handle, self.handle)
        function = driver.call("cuKernelGetFunction", library.handle)
        # Note: loaded now, since lazy loading in the first launch could happen inside a capture.
        driver.call("cuFuncLoad", function)
        return Loaded(library.kernel, function)
