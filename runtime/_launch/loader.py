"""Loads kernels: one library per kernel and process, one function per kernel and device."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass
from typing import Any

from skimattn.codegen.metadata import Kernel
from skimattn.codegen.spec import KernelSpec

from .._cuda import driver
from .._cuda.device import Device
from .._select import kernels
from ..errors import CudaError

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
_locks: dict[KernelSpec, threading.Lock] = {}
_locks_lock = threading.Lock()
# What a driver says of machine code that is newer than itself.
_UNREADABLE = ("CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION")


def load(device: Device, spec: KernelSpec) -> Loaded:
    """The kernel, loaded into the device's context with its shared memory allowed; see :func:`kernels.obtain`.

    Threads that need the same kernel wait while one compiles or loads it; those that need another one do not.
    """
    loaded = _loaded.get((device.ordinal, spec))
    if loaded is None:
        with _lock_of(spec):
            loaded = _loaded.get((device.ordinal, spec))
            if loaded is None:
                loaded = _loaded[device.ordinal, spec] = _load(device, spec)
    return loaded


def _lock_of(spec: KernelSpec) -> threading.Lock:
    with _locks_lock:
        return _locks.setdefault(spec, threading.Lock())


def _load(device: Device, spec: KernelSpec) -> Loaded:
    kept = _libraries.get(spec)
    kernel, cubin = (kept.kernel, b"") if kept else kernels.obtain(spec)
    with driver.current_context(device.context), driver.outside_capture():
        try:
            library = kept or _library(kernel, cubin)
            loaded = _function(device, library)
        except CudaError as error:
            raise _explained(error, kernel) from error
    _libraries[spec] = library
    return loaded


def _explained(error: CudaError, kernel: Kernel) -> CudaError:
    """The error, with both versions if the driver is older than the compiler."""
    compiler = re.search(r"(\d+)\.(\d+)", kernel.compiler)
    number = driver.call("cuDriverGetVersion")  # 12040 = 12.4
    have = number // 1000, number % 1000 // 10
    if error.name not in _UNREADABLE or compiler is None or (int(compiler[1]), int(compiler[2])) <= have:
        return error
    return CudaError(
        f"{error}; {kernel.name} was compiled by {kernel.compiler}, and the driver is of CUDA {have[0]}.{have[1]}: too "
        "old for it. Update the driver, or replace the compiler by one of that CUDA or older and compile again",
        error.name,
    )


def _library(kernel: Kernel, cubin: bytes) -> _Library:
    """The library of a kernel, loaded once per process from a cubin whose hash was checked."""
    library = driver.call("cuLibraryLoadData", cubin, [], [], 0, [], [], 0)
    handle = driver.call("cuLibraryGetKernel", library, kernel.entry.encode())
    LOGGER.info("loaded %s (%d bytes, sha256 %s)", kernel.name, len(cubin), kernel.cubin_sha256[:16])
    return _Library(kernel, handle, library)


def _function(device: Device, library: _Library) -> Loaded:
    smem = driver.bindings().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.call("cuKernelSetAttribute", smem, library.kernel.smem_bytes, library.handle, device.handle)
    function = driver.call("cuKernelGetFunction", library.handle)
    # Note: loaded now, since lazy loading in the first launch could happen inside a capture.
    driver.call("cuFuncLoad", function)
    return Loaded(library.kernel, function)
