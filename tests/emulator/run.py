"""Launches compiled kernels: parameter blocks, tensor maps, schedules, and errors as exceptions."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from skimattn.codegen.parameter_block import FIELDS, ParamsBlock, aligned_block

SCHEDULES = ("early", "late", "random")
Range = tuple[int, int]  # address and bytes of memory that a kernel may touch
_ONE_BYTE = ("e4m3",)
_MAP_MAGIC = 0x50414D4D494B53
_MAP_FORMAT = "<QQ3Q4I4II20s"  # struct Map in src/state.h
TIMEOUT = 120.0
_ERROR_BYTES = 1 << 16
_LAUNCHING = threading.Lock()  # the emulator has one global machine


class EmulatorError(Exception):
    """The emulator stopped a kernel. ``kind`` names the rule that was broken, ``message`` who broke it and where."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class MapLike(Protocol):
    """A 4-D tensor map: ``skimattn._launch.plan.TensorMapSpec`` or anything with its fields."""

    @property
    def address(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def dims(self) -> Sequence[int]: ...
    @property
    def strides(self) -> Sequence[int]: ...
    @property
    def box(self) -> Sequence[int]: ...


class KernelLike(Protocol):
    """The launch geometry of a metadata row."""

    @property
    def threads(self) -> int: ...
    @property
    def smem_bytes(self) -> int: ...
    @property
    def ctas_per_sm(self) -> int: ...


class LaunchLike(Protocol):
    """``skimattn._launch.plan.KernelLaunch``."""

    @property
    def kernel(self) -> KernelLike: ...
    @property
    def maps(self) -> Mapping[str, MapLike]: ...
    @property
    def scalars(self) -> Mapping[str, int | float]: ...
    @property
    def grid(self) -> int: ...


def encode_map(spec: MapLike, name: str = "map") -> bytes:
    """The 128 bytes that stand for a CUtensorMap in the emulator; ``name`` appears in its messages."""
    size = 1 if spec.dtype in _ONE_BYTE else 2
    packed = struct.pack(
        _MAP_FORMAT, _MAP_MAGIC, spec.address, *spec.strides, *spec.dims, *spec.box, size, name.encode()
    )
    return packed.ljust(128, b"\0")


class EmulatedKernel:
    """A kernel compiled for the emulator."""

    def __init__(self, name: str, runtime: Path, library: Path) -> None:
        self.name = name
        self._runtime = _load_runtime(runtime)
        self._library = ctypes.CDLL(str(library))

    def launch(
        self,
        block: ctypes.Structure,
        grid: int,
        threads: int,
        smem_bytes: int,
        *,
        ctas_per_sm: int = 1,
        schedule: str = "late",
        seed: int = 0,
        ranges: Sequence[Range] | None = None,
        timeout: float = TIMEOUT,
        strict_products: bool = False,
    ) -> None:
        """Run the whole grid; all its CTAs take turns.

        Args:
            block: the parameter block, with encoded maps.
            grid: CTAs.
            threads: threads of a CTA, a multiple of 128.
            smem_bytes: dynamic shared memory of a CTA.
            ctas_per_sm: CTAs that the kernel's launch bounds ask for, which share the registers of an SM.
            schedule: when TMA, wgmma and tcgen05 take effect: "early" at issue, "late" as late as the waits
                allow, "random" anywhere between.
            seed: 0 runs warps in turn; other seeds draw the order of warps and lanes, and what is random.
            ranges: global memory the kernel may touch; None = anything.
            timeout: seconds after which the launch is stopped.
            strict_products: whether tcgen05 products of one thread are ordered only where the ISA says so (same
                accumulator, shape and kind); otherwise they count as executing in the order of issue.

        Raises:
            EmulatorError: the kernel broke a rule, or no thread could go on.
        """
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)} (got {schedule!r})")
        flat = [number for pair in ranges or () for number in pair]
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        with _LAUNCHING:
            failed = self._runtime.skim_emulator_launch(
                self._library.skim_emulator_entry,
                ctypes.byref(block),
                grid,
                threads,
                ctas_per_sm,
                smem_bytes,
                SCHEDULES.index(schedule),
                int(strict_products),
                ctypes.c_uint64(seed),
                ctypes.c_double(timeout),
                (ctypes.c_uint64 * len(flat))(*flat),
                len(flat) // 2,
                error,
                _ERROR_BYTES,
            )
        if failed:
            kind, _, message = error.value.decode(errors="replace").partition("\n")
            raise EmulatorError(kind, message)


def run_plan(
    kernel: EmulatedKernel,
    plan: LaunchLike,
    *,
    grid: int | None = None,
    schedule: str = "late",
    seed: int = 0,
    ranges: Sequence[Range] | None = None,
    strict_products: bool = False,
) -> None:
    """Launch a plan's kernel, whose addresses are of CPU memory. ``grid`` replaces its own number of CTAs."""
    block, owner = aligned_block()
    fill_block(block, plan)
    kernel.launch(
        block,
        plan.grid if grid is None else grid,
        plan.kernel.threads,
        plan.kernel.smem_bytes,
        ctas_per_sm=plan.kernel.ctas_per_sm,
        schedule=schedule,
        seed=seed,
        ranges=ranges,
        strict_products=strict_products,
    )
    del owner


def fill_block(block: ParamsBlock, plan: LaunchLike) -> None:
    """Write a plan's maps and scalars; fields that it does not name stay zero."""
    known = {field.name: field for field in FIELDS}
    for name, value in plan.scalars.items():
        if name not in known or known[name].kind == "tensor_map":
            raise KeyError(f"{name}: no such scalar in the parameter block")
        setattr(block, name, value)
    for name, spec in plan.maps.items():
        if known[name].kind != "tensor_map":
            raise KeyError(f"{name}: no tensor map in the parameter block")
        ctypes.memmove(ctypes.byref(block, getattr(ParamsBlock, name).offset), encode_map(spec, name), 128)


@cache
def _load_runtime(path: Path) -> ctypes.CDLL:
    # Global: kernels find the emulator's functions in it.
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.skim_emulator_launch.restype = ctypes.c_int
    return library
