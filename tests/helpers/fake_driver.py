"""A CUDA driver that computes nothing and remembers everything, so that the launch path runs without a GPU.

Types and enums are those of ``cuda.bindings``; functions are the ones below. Tensors that claim to be on a GPU are CPU
tensors of the class :class:`OnGpu`.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from cuda.bindings import driver as real
from skimattn import launcher
from skimattn._call.masks import pack_mask
from skimattn._cuda import device as device_module
from skimattn._cuda import driver, memory, streams
from skimattn._launch import buffers, loader, signature, tensormap
from skimattn._launch.prepared import PreparedLaunches
from skimattn._launch.step import LaunchConfig
from skimattn._select import kernels
from skimattn.codegen.parameter_block import SIZE, TENSOR_MAP_BYTES, ParamsBlock
from skimattn.params import Params

SUCCESS = real.CUresult.CUDA_SUCCESS
CONTEXT = 0x1000  # of device 0; device i has CONTEXT + i


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is on ``cuda:ordinal``."""

    ordinal = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.ordinal)

    @property
    def is_cuda(self) -> bool:
        return True

    def get_device(self) -> int:
        return self.ordinal


class OnOtherGpu(OnGpu):
    ordinal = 1


def on_gpu(tensor: torch.Tensor, ordinal: int = 0) -> torch.Tensor:
    return tensor.as_subclass(OnOtherGpu if ordinal else OnGpu)


@dataclass
class Launch:
    """What one cuLaunchKernelEx was given; ``block`` is a copy taken at the call, as the driver takes one."""

    stream: int
    grid: int
    threads: int
    smem: int
    function: int
    context: int
    block: ParamsBlock
    starts_early: bool  # as a kernel may that waits itself for the end of the one before it

    def map_address(self, name: str) -> int:
        return struct.unpack_from("<Q", bytes(getattr(self.block, name)))[0]

    def map_sizes(self, name: str) -> tuple[int, ...]:
        """Dims, strides in bytes and box of a map, as the fake encodes them."""
        return struct.unpack_from("<11Q", bytes(getattr(self.block, name)), 8)

    def map_promotion(self, name: str) -> int:
        """How many bytes L2 may fetch for 128 that a copy asks for."""
        promotion = real.CUtensorMapL2promotion(bytes(getattr(self.block, name))[97])
        return int(promotion.name.removeprefix("CU_TENSOR_MAP_L2_PROMOTION_L2_").removesuffix("B"))

    def map_type(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Element type and box of a map."""
        element = real.CUtensorMapDataType(bytes(getattr(self.block, name))[96])
        return element.name.removeprefix("CU_TENSOR_MAP_DATA_TYPE_"), self.map_sizes(name)[7:]


@dataclass
class FakeDriver:
    """Stands for the module ``cuda.bindings.driver``."""

    capability: tuple[int, int] = (9, 0)
    sm_count: int = 132
    version: int = 13000  # of CUDA, as the driver counts
    calls: list[str] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    capturing: set[int] = field(default_factory=set)
    failing: dict[str, Any] = field(default_factory=dict)
    stream_ids: dict[int, int] = field(default_factory=dict)
    libraries: list[bytes] = field(default_factory=list)
    _state: Any = field(default_factory=threading.local)

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("cu") or name in ("cuuint64_t", "cuuint32_t"):
            return object.__getattribute__(self, name)
        if name in self.failing:
            return lambda *_: (self.failing[name],)
        self.calls.append(name)
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)  # types and enums

    @property
    def contexts(self) -> list[int]:
        if not hasattr(self._state, "contexts"):
            self._state.contexts = [CONTEXT]
        return self._state.contexts

    def cuInit(self, _flags: int) -> Any:
        return (SUCCESS,)

    def cuDriverGetVersion(self) -> Any:
        return SUCCESS, self.version

    def cuGetErrorName(self, status: Any) -> Any:
        return SUCCESS, status.name.encode()

    def cuGetErrorString(self, _status: Any) -> Any:
        return SUCCESS, b"as the test wished"

    def cuDeviceGet(self, ordinal: int) -> Any:
        return SUCCESS, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return SUCCESS, real.CUcontext(CONTEXT + device)

    def cuDeviceGetAttribute(self, attribute: Any, _device: int) -> Any:
        values = {
            "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": self.sm_count,
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": self.capability[0],
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": self.capability[1],
        }
        return SUCCESS, values[attribute.name]

    def cuCtxPushCurrent(self, context: Any) -> Any:
        self.contexts.append(int(context))
        return (SUCCESS,)

    def cuCtxPopCurrent(self) -> Any:
        return SUCCESS, real.CUcontext(self.contexts.pop())

    def cuThreadExchangeStreamCaptureMode(self, _mode: Any) -> Any:
        return SUCCESS, real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL

    def cuMemAlloc(self, _size: int) -> Any:
        return SUCCESS, real.CUdeviceptr(0x10000000 * (1 + self.calls.count("cuMemAlloc")))

    def cuStreamCreate(self, _flags: int) -> Any:
        return SUCCESS, real.CUstream(0xABC)

    def cuMemsetD32Async(self, _address: Any, value: int, _count: int, _stream: Any) -> Any:
        assert value == 0
        return (SUCCESS,)

    def cuStreamSynchronize(self, stream: Any) -> Any:
        assert int(stream) == 0xABC, "only the private set-up stream may be waited for"
        return (SUCCESS,)

    def cuStreamDestroy(self, _stream: Any) -> Any:
        return (SUCCESS,)

    def cuStreamIsCapturing(self, stream: Any) -> Any:
        states = real.CUstreamCaptureStatus
        active = int(stream) in self.capturing
        return SUCCESS, states.CU_STREAM_CAPTURE_STATUS_ACTIVE if active else states.CU_STREAM_CAPTURE_STATUS_NONE

    def cuStreamGetId(self, stream: Any) -> Any:
        return SUCCESS, self.stream_ids.get(int(stream), int(stream) + 100)

    def cuLibraryLoadData(self, code: bytes, *_options: Any) -> Any:
        self.libraries.append(code)
        return SUCCESS, real.CUlibrary(len(self.libraries))

    def cuLibraryGetKernel(self, library: Any, _name: bytes) -> Any:
        return SUCCESS, real.CUkernel(0x100 + int(library))

    def cuKernelSetAttribute(self, *_arguments: Any) -> Any:
        return (SUCCESS,)

    def cuKernelGetFunction(self, kernel: Any) -> Any:
        return SUCCESS, real.CUfunction(int(kernel) + (self.contexts[-1] << 16))

    def cuFuncLoad(self, _function: Any) -> Any:
        return (SUCCESS,)


def _address(argument: Any) -> int:
    """Where an argument points that ctypes would pass as a pointer."""
    if isinstance(argument, ctypes.c_void_p):
        return argument.value or 0
    if isinstance(argument, ctypes.Array):
        return ctypes.addressof(argument)
    return int(repr(argument).removesuffix(")>").rpartition("(")[2], 16)  # <cparam 'P' (0x7f...)>, as byref() returns


class FakeLibrary:
    """Stands for the driver's shared library: the functions that ctypes calls, with the arguments it is given."""

    def __init__(self, fake: FakeDriver) -> None:
        self._fake = fake

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name in self._fake.failing:
                return int(self._fake.failing[name])
            self._fake.calls.append(name)
            getattr(self, f"_{name}")(*arguments)
            return 0

        return call

    def _cuCtxGetCurrent(self, found: Any) -> None:
        ctypes.c_void_p.from_address(_address(found)).value = self._fake.contexts[-1]

    def _cuTensorMapEncodeTiled(self, place: Any, element: Any, rank: int, address: Any, *layout: Any) -> None:
        assert rank == 4 and address.value % 16 == 0 and address.value
        dims = struct.unpack("<4Q", ctypes.string_at(_address(layout[0]), 32))
        strides = struct.unpack("<3Q", ctypes.string_at(_address(layout[1]), 24))
        box, steps = (struct.unpack("<4I", ctypes.string_at(_address(at), 16)) for at in layout[2:4])
        assert steps == (1, 1, 1, 1) and len(layout) == 8
        encoded = struct.pack("<Q11QBB", address.value, *dims, *strides, *box, element, layout[6])
        ctypes.memmove(_address(place), encoded.ljust(TENSOR_MAP_BYTES, b"\0"), TENSOR_MAP_BYTES)

    def _cuTensorMapReplaceAddress(self, place: Any, address: Any) -> None:
        assert address.value and address.value % 16 == 0
        ctypes.memmove(_address(place), struct.pack("<Q", address.value), 8)

    def _cuLaunchKernelEx(self, config: Any, function: Any, argv: Any, extra: None) -> None:
        assert extra is None
        sent = LaunchConfig.from_buffer_copy(ctypes.string_at(_address(config), ctypes.sizeof(LaunchConfig)))
        assert (sent.gridDimY, sent.gridDimZ, sent.blockDimY, sent.blockDimZ) == (1, 1, 1, 1)
        start = ctypes.c_void_p.from_address(_address(argv)).value
        assert start is not None and start % 64 == 0
        block = ParamsBlock.from_buffer_copy(ctypes.string_at(start, SIZE))
        fake = self._fake
        fake.launches.append(
            Launch(
                sent.hStream or 0,
                sent.gridDimX,
                sent.blockDimX,
                sent.sharedMemBytes,
                _address(function),
                fake.contexts[-1],
                block,
                _starts_early(sent),
            )
        )


def _starts_early(sent: LaunchConfig) -> bool:
    """Whether the one attribute that launches may have is there, in the driver's own layout."""
    if not sent.numAttrs:
        return False
    assert sent.numAttrs == 1
    name, _, value = struct.unpack_from("<IIi", ctypes.string_at(sent.attrs, 72))
    wanted = real.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert (name, value) == (int(wanted), 1)
    return True


def _empty(sizes: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, ordinal: int) -> torch.Tensor:
    return on_gpu(torch.empty_strided(sizes, strides, dtype=dtype), ordinal)


def install(monkeypatch: Any, fake: FakeDriver | None = None) -> FakeDriver:
    """Make the runtime use a fake driver, with nothing prepared or loaded, and kernels that need no compiler."""
    fake = fake or FakeDriver()
    monkeypatch.setattr(driver, "_module", fake)
    monkeypatch.setattr(driver, "_library", FakeLibrary(fake))
    monkeypatch.setattr(driver, "_brief_library", FakeLibrary(fake))
    monkeypatch.setattr(device_module, "_devices", {})
    monkeypatch.setattr(loader, "_libraries", {})
    monkeypatch.setattr(loader, "_loaded", {})
    monkeypatch.setattr(launcher, "_forms", {})
    monkeypatch.setattr(launcher, "_prepared", PreparedLaunches())
    monkeypatch.setattr(signature, "_recent", ())
    monkeypatch.setattr(signature, "_all_outlines", {})
    monkeypatch.setattr(kernels, "built", dict)  # whatever this checkout has built, or built long ago
    monkeypatch.setattr(kernels, "obtain", lambda spec: (kernels.unbuilt_row(spec), spec.name.encode()))
    monkeypatch.setattr(streams, "current", lambda _ordinal: 0)
    monkeypatch.setattr(buffers, "pack_mask", lambda mask: on_gpu(pack_mask(mask.as_subclass(torch.Tensor))))
    monkeypatch.setattr(memory, "PLAIN", memory.PLAIN | {OnGpu, OnOtherGpu})
    monkeypatch.setattr(memory, "empty", _empty)
    tensormap._codes.cache_clear()
    tensormap.address_comes_first.cache_clear()
    return fake


def scan_of(params: Params) -> signature.Scan:
    """What a launch sees of a call."""
    return signature.Scan(params, *signature.outline_of(params))


def small_call(ordinal: int = 0, batch: int = 1, **arguments: Any) -> Params:
    """A causal call of 70 rows and 300 keys, 4 heads on 2, on a GPU that is not there."""
    q = on_gpu(torch.zeros(batch, 70, 4, 128, dtype=torch.bfloat16), ordinal)
    k, v = (on_gpu(torch.zeros(batch, 300, 2, 128, dtype=torch.bfloat16), ordinal) for _ in "kv")
    return Params(q, k, v, **{"mask": "causal", **arguments})
