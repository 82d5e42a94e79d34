"""Which stream a launch goes to, and which stream new tensors must be allocated on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import CudaError, expected

LEGACY = 0  # the default stream; CU_STREAM_LEGACY names it too
_CU_STREAM_LEGACY = 1


def handle_of(stream: Any, ordinal: int) -> int:
    """The driver's handle of ``stream`` as an int.

    Args:
        stream: a handle, a ``torch.cuda.Stream`` of the device, or an object with ``__cuda_stream__`` or ``int()``.
        ordinal: torch's index of the device that the launch is for.
    """
    if isinstance(stream, torch.Stream):
        if stream.device.type != "cuda" or stream.device.index != ordinal:
            raise expected("stream", f"a stream on cuda:{ordinal}, like q", stream.device)
        handle = int(stream.cuda_stream)  # type: ignore[attr-defined]
    elif hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        handle = int((protocol() if callable(protocol) else protocol)[1])
    else:
        try:
            handle = int(stream)
        except (TypeError, ValueError):
            raise expected("stream", "None, a stream or its handle as an int", type(stream).__name__) from None
        if isinstance(stream, bool | float | str) or handle < 0:
            raise expected("stream", "None, a stream or its handle as an int", repr(stream))
    return LEGACY if handle == _CU_STREAM_LEGACY else handle


def _no_cuda(_ordinal: int) -> int:
    raise CudaError("torch: this build has no CUDA, so there are no streams")


# The handle of torch's current stream of a device, by its index.
current: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _no_cuda)


@contextmanager
def allocating_on(handle: int, device: torch.device) -> Iterator[None]:
    """Allocate on the stream that will write, so that memory is not reused while earlier work still reads it."""
    assert device.index is not None
    if handle == current(device.index):
        yield
        return
    external: Any = torch.cuda.ExternalStream
    stream = external(handle, device) if handle else torch.cuda.default_stream(device)
    with torch.cuda.stream(stream):
        yield
