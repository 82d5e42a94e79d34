"""One kernel of a prepared launch: the memory that the driver reads when it is launched."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from skimattn.codegen.parameter_block import FIELDS, OFFSETS, SIZE, TENSOR_MAP_BYTES, aligned_block

from .loader import Loaded
from .plan import KernelLaunch, Value
from .tensormap import MapWriter

_MAPS = [name for name in OFFSETS if name.startswith("tma_")]
_FORMATS = {"pointer": "Q", "int64": "q", "int32": "i", "float32": "f"}
_KINDS = {field.name: field.kind for field in FIELDS}


class LaunchConfig(ctypes.Structure):
    """The driver's ``CUlaunchConfig``."""

    _fields_ = (
        ("gridDimX", ctypes.c_uint),
        ("gridDimY", ctypes.c_uint),
        ("gridDimZ", ctypes.c_uint),
        ("blockDimX", ctypes.c_uint),
        ("blockDimY", ctypes.c_uint),
        ("blockDimZ", ctypes.c_uint),
        ("sharedMemBytes", ctypes.c_uint),
        ("hStream", ctypes.c_void_p),
        ("attrs", ctypes.c_void_p),
        ("numAttrs", ctypes.c_uint),
    )


def writer(memory: memoryview, *names: str) -> Callable[..., None]:
    """What writes these fields, which follow each other, into the block at once: faster than one by one."""
    first = list(OFFSETS).index(names[0])
    assert tuple(OFFSETS)[first : first + len(names)] == names
    layout = struct.Struct("=" + "".join([_FORMATS[_KINDS[name]] for name in names]))
    return partial(layout.pack_into, memory, OFFSETS[names[0]])


class LaunchAttribute(ctypes.Structure):
    """The driver's ``CUlaunchAttribute`` with an int for its value."""

    _fields_ = (("id", ctypes.c_uint), ("_pad", ctypes.c_uint), ("value", ctypes.c_int), ("_rest", ctypes.c_byte * 60))


# Phases whose kernels may start before the one before them in the stream has ended, for whose end they wait themselves.
_STARTS_EARLY = ("decode", "mla", "combine")
_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_...
_EARLY = LaunchAttribute(_PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)


class Step:
    """A parameter block, the arguments that point to it, and a launch configuration; filled in for one call."""

    __slots__ = (
        "_argv",
        "_fixed",
        "_function",
        "_owner",
        "_start",
        "arguments",
        "block",
        "config",
        "maps",
        "memory",
        "name",
        "used",
    )

    def __init__(self) -> None:
        """Memory, and nothing in it yet."""
        self.block, self._owner = aligned_block()
        self._start = ctypes.addressof(self.block)
        first = self._start - ctypes.addressof(self._owner)
        self.memory = memoryview(self._owner).cast("B")[first : first + SIZE]  # the block's bytes
        places = {name: slice(OFFSETS[name], OFFSETS[name] + TENSOR_MAP_BYTES) for name in _MAPS}
        self.maps = {name: MapWriter(self.memory[at], self._start + at.start) for name, at in places.items()}
        self.used: frozenset[str] = frozenset()  # names of the maps that its kernel reads
        self._argv = (ctypes.c_void_p * 1)(self._start)
        self.config = LaunchConfig(1, 1, 1, 1, 1, 1, 0, None, None, 0)
        self._function = 0
        self.arguments: tuple[Any, ...] = ()  # of cuLaunchKernelEx
        self.name = ""
        self._fixed: Mapping[str, Value] = {}

    def fill(self, planned: KernelLaunch, loaded: Loaded) -> None:
        """Write everything but the stream and what :meth:`Prepared.launch` keeps up to date: addresses."""
        block, config = self.block, self.config
        if self._fixed is not planned.fixed:  # what a plan does not name is zero; another plan may have named it
            ctypes.memset(self._start, 0, SIZE)
            for name, value in planned.fixed.items():
                setattr(block, name, value)
            self._fixed = planned.fixed
        for name, value in planned.scalars.items():
            setattr(block, name, value)
        self.used = frozenset(planned.maps)
        for name, spec in planned.maps.items():
            self.maps[name].write(spec)
        config.gridDimX = planned.grid
        if self.name != loaded.kernel.name or self._function != int(loaded.function):
            kernel = loaded.kernel
            config.blockDimX, config.sharedMemBytes = kernel.threads, kernel.smem_bytes
            early = kernel.phase in _STARTS_EARLY
            config.attrs, config.numAttrs = (ctypes.addressof(_EARLY), 1) if early else (None, 0)
            self._function, self.name = int(loaded.function), kernel.name
            function = ctypes.c_void_p.from_param(self._function)
            self.arguments = ctypes.byref(config), function, ctypes.byref(self._argv), None
