"""Loads kernels: one library per kernel and process, one function per kernel and device."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

from skimattn.codegen.metadata import Kernel
from skimattn.codegen.spec import KernelSpec

from .._cuda import driver
from .._cuda.device import Device
from .._select import kernels

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
_loaded: dict[tuple[int, KernelSpec], Loaded] = {}
_lock = threading.Lock()


def load(device: Device, spec: KernelSpec) -> Loaded:
    """The kernel, loaded into the device's context with its shared memory allowed; see :func:`kernels.obtain`."""
    loaded = _loaded.get((device.ordinal, spec))
    if loaded is None:
        with _lock, driver.current_context(device.context), driver.outside_capture():
            loaded = _loaded.setdefault((device.ordinal, spec), _function(device, _library(spec)))
    return loaded


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


def _function(device: Device, library: _Library) -> Loaded:
    smem = driver.bindings().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.call("cuKernelSetAttribute", smem, library.kernel.smem_bytes, library.handle, device.handle)
    function = driver.call("cuKernelGetFunction", library.handle)
    # Note: loaded now, since lazy loading in the first launch could happen inside a capture.
    driver.call("cuFuncLoad", function)
    return Loaded(library.kernel, function)
