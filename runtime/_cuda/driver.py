"""The CUDA driver through ``cuda.bindings``, imported at first use: errors as exceptions, contexts, capture modes.

What runs in every launch goes through plain ctypes (:func:`raw`), whose arguments can be made once: encoding a tensor
map takes 0.7 us so, 1.9 us through ``cuda.bindings``. Cheapest are arguments of the kind that ``ctypes.byref`` and
``c_void_p.from_param`` return, which ctypes does not convert in every call (bench/NOTES.md, host time).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import CudaError

_lock = threading.Lock()
_module: Any = None
_library: Any = None
_brief_library: Any = None


def bindings() -> Any:
    """The module ``cuda.bindings.driver``, initialised; :class:`CudaError` without a usable driver."""
    global _module
    if _module is None:
        with _lock:
            if _module is None:
                _module = _initialise()
    return _module


def _initialise() -> Any:
    from cuda.bindings import driver  # a CPU-only process never needs it

    try:
        _raise_for("cuInit", driver, driver.cuInit(0)[0])
    except RuntimeError as error:
        raise CudaError(f"cuInit: the CUDA driver cannot be used here ({error})") from error
    return driver


def raw(name: str, *, brief: bool = False) -> Any:
    """The driver function ``name`` as ctypes calls it: arguments are ctypes objects or ints, the result is a status.

    One that is ``brief`` never waits, so it runs without handing on the interpreter, which takes longer than it does.
    """
    global _library, _brief_library
    if _library is None:
        bindings()
        with _lock:
            _brief_library = _brief_library or ctypes.PyDLL("libcuda.so.1")
            _library = _library or ctypes.CDLL("libcuda.so.1")
    return getattr(_brief_library if brief else _library, name)


def _raise_for(call: str, driver: Any, status: Any) -> None:
    if status != driver.CUresult.CUDA_SUCCESS:
        status = driver.CUresult(status)
        _, known = driver.cuGetErrorName(status)
        _, text = driver.cuGetErrorString(status)
        name = (known or b"unknown error").decode()
        raise CudaError(f"{call}: {name} ({(text or b'').decode()}, code {int(status)})", name)


def raise_for(call: str, status: Any) -> None:
    """Raise :class:`CudaError`, with the driver's name and text, unless ``status`` is success."""
    _raise_for(call, bindings(), status)


def call(name: str, *arguments: Any) -> Any:
    """Call the driver function ``name``; returns its value (a tuple if several, None if none) or raises."""
    driver = bindings()
    status, *values = getattr(driver, name)(*arguments)
    _raise_for(name, driver, status)
    return values[0] if len(values) == 1 else tuple(values) or None


@contextmanager
def current_context(context: int) -> Iterator[None]:
    """Make ``context`` current in this thread, and the previous one again afterwards."""
    call("cuCtxPushCurrent", bindings().CUcontext(context))
    try:
        yield
    finally:
        call("cuCtxPopCurrent")


@contextmanager
def outside_capture() -> Iterator[None]:
    """Allow allocation and loading in this thread while a stream is being captured; they do not become part of it."""
    relaxed = bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    previous = call("cuThreadExchangeStreamCaptureMode", relaxed)
    try:
        yield
    finally:
        call("cuThreadExchangeStreamCaptureMode", previous)
