"""One kernel of a prepared launch: the memory that the driver reads when it is launched."""

from __future__ import annotations

import ctypes
from typing import Any

from skimattn.codegen.params import OFFSETS, SIZE, aligned_block

from .._cuda import driver, streams
from . import tensormap
from .loader import Loaded
from .plan import KernelLaunch

_MAPS = [name for name in OFFSETS if name.startswith("tma_")]


class Step:
    """A parameter block, the arguments that point to it, and a launch configuration; filled in for one call."""

    __slots__ = ("_argv", "_owner", "_start", "argv_address", "block", "config", "function", "maps", "name")

    def __init__(self) -> None:
        """Memory, and nothing in it yet."""
        cuda = driver.bindings()
        self.block, self._owner = aligned_block()
        self._start = ctypes.addressof(self.block)
        self.maps = {name: tensormap.MapWriter(self._start + OFFSETS[name]) for name in _MAPS}
        self._argv = (ctypes.c_void_p * 1)(self._start)
        self.argv_address = ctypes.addressof(self._argv)
        self.config = cuda.CUlaunchConfig()
        self.config.gridDimY = self.config.gridDimZ = self.config.blockDimY = self.config.blockDimZ = 1
        self.config.numAttrs = 0
        self.name, self.function = "", None

    def fill(self, planned: KernelLaunch, loaded: Loaded) -> None:
        """Write everything but the stream. What a plan does not name is zero."""
        kernel = loaded.kernel
        ctypes.memset(self._start, 0, SIZE)
        block = self.block
        for name, value in planned.scalars.items():
            setattr(block, name, value)
        for name, spec in planned.maps.items():
            self.maps[name].write(spec)
        config: Any = self.config
        config.gridDimX, config.blockDimX = planned.grid, kernel.threads
        config.sharedMemBytes, config.hStream = kernel.smem_bytes, streams.LEGACY
        self.name, self.function = kernel.name, loaded.function
