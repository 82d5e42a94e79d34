"""The kernels of a prepared launch: the memory that the driver reads when they are launched."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from skimattn.codegen.parameter_block import FIELDS, OFFSETS, SIZE, TENSOR_MAP_BYTES, aligned_block

from .loader import Loaded
from .plan import KernelLaunch, LaunchPlan, Value
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


def scattered_writer(memory: memoryview, names: Sequence[str]) -> Callable[..., None]:
    """The same of fields that need not follow each other, in their order; those between them become zero."""
    layout, end = "=", OFFSETS[names[0]]
    for name in names:
        layout += f"{OFFSETS[name] - end}x{_FORMATS[_KINDS[name]]}"
        end = OFFSETS[name] + struct.calcsize("=" + _FORMATS[_KINDS[name]])
    return partial(struct.Struct(layout).pack_into, memory, OFFSETS[names[0]])


class LaunchAttribute(ctypes.Structure):
    """The driver's ``CUlaunchAttribute`` with an int for its value."""

    _fields_ = (("id", ctypes.c_uint), ("_pad", ctypes.c_uint), ("value", ctypes.c_int), ("_rest", ctypes.c_byte * 60))


# Phases whose kernels may start before the one before them in the stream has ended, for whose end they wait themselves.
_STARTS_EARLY = ("decode", "mla", "combine")
_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_...
_EARLY = LaunchAttribute(_PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)


class Block:
    """A parameter block in memory, filled in for one call. Kernels that are told the same share one."""

    __slots__ = ("_fixed", "_owner", "fields", "maps", "memory", "start", "used")

    def __init__(self) -> None:
        """Memory, and nothing in it yet."""
        self.fields, self._owner = aligned_block()
        self.start = ctypes.addressof(self.fields)
        first = self.start - ctypes.addressof(self._owner)
        self.memory = memoryview(self._owner).cast("B")[first : first + SIZE]  # the block's bytes
        places = {name: slice(OFFSETS[name], OFFSETS[name] + TENSOR_MAP_BYTES) for name in _MAPS}
        self.maps = {name: MapWriter(self.memory[at], self.start + at.start) for name, at in places.items()}
        self.used: frozenset[str] = frozenset()  # names of the maps that are read
        self._fixed: Mapping[str, Value] = {}

    def fill(self, planned: KernelLaunch) -> None:
        """Write everything but what :meth:`Prepared.launch` keeps up to date: addresses."""
        fields = self.fields
        if self._fixed is not planned.fixed:  # what a plan does not name is zero; another plan may have named it
            ctypes.memset(self.start, 0, SIZE)
            for name, value in planned.fixed.items():
                setattr(fields, name, value)
            self._fixed = planned.fixed
        for name, value in planned.scalars.items():
            setattr(fields, name, value)
        self.used = frozenset(planned.maps)
        for name, spec in planned.maps.items():
            self.maps[name].write(spec)


class Step:
    """A kernel of a launch: its launch configuration, and the arguments that point to it and to a block."""

    __slots__ = ("_argv", "_function", "arguments", "block", "config", "name")

    def __init__(self) -> None:
        """Nothing is known of it yet."""
        self.block: Block | None = None
        self.config = LaunchConfig(1, 1, 1, 1, 1, 1, 0, None, None, 0)
        self._argv = (ctypes.c_void_p * 1)()
        self._function = 0
        self.arguments: tuple[Any, ...] = ()  # of cuLaunchKernelEx
        self.name = ""

    def fill(self, grid: int, loaded: Loaded, block: Block) -> None:
        """Everything but the stream."""
        config, self.block = self.config, block
        self._argv[0] = block.start
        config.gridDimX = grid
        if self.name != loaded.kernel.name or self._function != int(loaded.function):
            kernel = loaded.kernel
            config.blockDimX, config.sharedMemBytes = kernel.threads, kernel.smem_bytes
            early = kernel.phase in _STARTS_EARLY
            config.attrs, config.numAttrs = (ctypes.addressof(_EARLY), 1) if early else (None, 0)
            self._function, self.name = int(loaded.function), kernel.name
            function = ctypes.c_void_p.from_param(self._function)
            self.arguments = ctypes.byref(config), function, ctypes.byref(self._argv), None


class Steps:
    """The kernels of a launch in the order of the stream, and their blocks. They are filled in as often as need be."""

    def __init__(self) -> None:
        """None."""
        self._all_steps: list[Step] = []
        self._all_blocks: list[Block] = []
        self.steps: list[Step] = []
        self.blocks: list[Block] = []

    def fill(self, plan: LaunchPlan, loaded: Mapping[str, Loaded]) -> None:
        """Everything but streams and addresses; ``loaded`` are the kernels by phase."""
        while len(self._all_steps) < len(plan.kernels):
            self._all_steps.append(Step())
            self._all_blocks.append(Block())
        self.steps, self.blocks = self._all_steps[: len(plan.kernels)], []
        for step, planned in zip(self.steps, plan.kernels, strict=True):
            if not planned.shares_block:
                block = self._all_blocks[len(self.blocks)]
                block.fill(planned)
                self.blocks.append(block)
            step.fill(planned.grid, loaded[planned.role], block)
