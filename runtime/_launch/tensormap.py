"""TMA tensor maps: from the plan's description to the driver's 128 bytes."""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import Any, NamedTuple

from skimattn.codegen.parameter_block import TENSOR_MAP_BYTES, aligned_block
from skimattn.codegen.tiles.common import ELEMENT_BYTES

from .._cuda import driver
from ..errors import CudaError
from .extent import Extent
from .plan import Box, TensorMapSpec

_pack_sizes = struct.Struct("=7Q").pack_into  # dims, then strides
_STRIDES_AT = 4 * 8
_BOX = struct.Struct("=4I")
_ONE = (ctypes.c_uint32 * 4)(1, 1, 1, 1)  # element strides
_SAMPLES = (0x10, 0x7A5C_3918_2640, 0x0583_C6E7_D9B0)  # addresses that differ in many bits


class _Codes(NamedTuple):
    """The driver's: of element types, of what all maps have, and of two promotions in L2."""

    elements: dict[str, int]
    interleave: int
    swizzle: int
    fill: int  # of what lies outside: zeros
    promote_128: int
    promote_256: int


@cache
def _codes() -> _Codes:
    cuda = driver.bindings()
    types = cuda.CUtensorMapDataType
    elements = {
        "bf16": int(types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16),
        "e4m3": int(types.CU_TENSOR_MAP_DATA_TYPE_UINT8),
        "fp16": int(types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16),
    }
    return _Codes(
        elements,
        int(cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
        int(cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B),
        int(cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        int(cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B),
        int(cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
    )


def promotes_256(spec: TensorMapSpec) -> bool:
    """Whether L2 may fetch 256 bytes for the 128 of a box's row: where the rest is of the same head.

    Else it is a neighbouring head's, which another CTA reads at another time: decode with 64 columns is 6 % faster
    without, and with 128 columns 1 % slower (bench/NOTES.md).
    """
    row = spec.dims[0] * ELEMENT_BYTES[spec.dtype]
    return row >= 256 or spec.strides[0] == row


@cache
def address_comes_first() -> bool:
    """Whether this driver's maps begin with their address, and nothing else in them depends on it.

    The format is not documented, so this is tried out. Where it is so, an address is written with one assignment
    instead of a call of the driver, which takes ten times as long.
    """
    block, owner = aligned_block()
    start = ctypes.addressof(block)
    first = start - ctypes.addressof(owner)
    memory = memoryview(owner).cast("B")[first : first + TENSOR_MAP_BYTES]
    writer = MapWriter(memory, start)
    try:
        writer.write(TensorMapSpec(_SAMPLES[0], "bf16", (128, 96, 4, 3), (1024, 256, 98304), (64, 64, 1, 1)))
        seen = [bytes(memory)]
        for address in _SAMPLES[1:]:
            writer.ask_to_move(address)
            seen.append(bytes(memory))
    except CudaError:
        return False
    rest = seen[0][8:]
    return seen == [struct.pack("=Q", address) + rest for address in _SAMPLES]


class MapWriter:
    """Writes maps to one place in a parameter block, which its owner keeps alive. Not for two threads at once."""

    __slots__ = (
        "_address",
        "_arguments",
        "_box",
        "_encode",
        "_last_box",
        "_last_dtype",
        "_last_promotion",
        "_place",
        "_replace",
        "_sizes",
        "_words",
        "memory",
    )

    def __init__(self, memory: memoryview, place: int) -> None:
        """For the map whose bytes are ``memory``, at the address ``place``."""
        self.memory, self._words = memory, memory.cast("Q")
        self._encode = driver.raw("cuTensorMapEncodeTiled", brief=True)
        self._replace = driver.raw("cuTensorMapReplaceAddress", brief=True)
        self._place, self._address = ctypes.c_void_p.from_param(place), ctypes.c_void_p(0)
        self._last_box: tuple[int, ...] = ()
        self._last_dtype, self._last_promotion = "", 0
        self._sizes, self._box = (ctypes.c_uint64 * 7)(), (ctypes.c_uint32 * 4)()
        self._arguments: tuple[Any, ...] = ()

    def write(self, spec: TensorMapSpec) -> None:
        """Write the whole map; :class:`CudaError` repeats the description that the driver refused."""
        address, dtype, dims, strides, box = spec
        codes = _codes()
        promotion = codes.promote_256 if promotes_256(spec) else codes.promote_128
        if box is not self._last_box or dtype is not self._last_dtype or promotion != self._last_promotion:
            _BOX.pack_into(self._box, 0, *box)
            self._last_box, self._last_dtype, self._last_promotion = box, dtype, promotion
            self._arguments = (
                self._place,
                codes.elements[dtype],
                4,
                self._address,
                ctypes.byref(self._sizes),
                ctypes.byref(self._sizes, _STRIDES_AT),
                ctypes.byref(self._box),
                ctypes.byref(_ONE),
                codes.interleave,
                codes.swizzle,
                promotion,
                codes.fill,
            )
        try:
            self.rewrite(address, (*dims, *strides))
        except CudaError as error:
            raise CudaError(f"{error}; the map was {spec}") from error

    def set_box(self, box: Box) -> None:
        """Let :meth:`rewrite` write another box."""
        _BOX.pack_into(self._box, 0, *box)
        self._last_box = box

    def rewrite(self, address: int, extent: Extent) -> None:
        """Write a map of the element type and box of the last one, over another tensor."""
        _pack_sizes(self._sizes, 0, *extent)
        self._address.value = address
        status = self._encode(*self._arguments)
        if status:
            driver.raise_for("cuTensorMapEncodeTiled", status)

    def move(self, address: int) -> None:
        """Point the map to another address."""
        if address_comes_first():
            self._words[0] = address
        else:
            self.ask_to_move(address)

    def ask_to_move(self, address: int) -> None:
        """The same, by the driver."""
        self._address.value = address
        status = self._replace(self._place, self._address)
        if status:
            driver.raise_for("cuTensorMapReplaceAddress", status)
