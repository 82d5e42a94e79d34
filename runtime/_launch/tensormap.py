"""TMA tensor maps: from the plan's description to the driver's 128 bytes."""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import Any

from .._cuda import driver
from ..errors import CudaError
from .plan import Extent, TensorMapSpec

_pack_sizes = struct.Struct("=7Q").pack_into  # dims, then strides
_STRIDES_AT = 4 * 8
_BOX = struct.Struct("=4I")
_ONE = (ctypes.c_uint32 * 4)(1, 1, 1, 1)  # element strides


@cache
def _constants() -> tuple[dict[str, int], tuple[int, ...]]:
    """The driver's codes of element types; interleave, swizzle, L2 promotion, fill outside (zeros)."""
    cuda = driver.bindings()
    types = cuda.CUtensorMapDataType
    elements = {
        "bf16": int(types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16),
        "e4m3": int(types.CU_TENSOR_MAP_DATA_TYPE_UINT8),
        "fp16": int(types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16),
    }
    layout = (
        cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    return elements, tuple(int(value) for value in layout)


class MapWriter:
    """Writes maps to one place in a parameter block, which its owner keeps alive. Not for two threads at once."""

    __slots__ = (
        "_address",
        "_arguments",
        "_box",
        "_bytes",
        "_elements",
        "_encode",
        "_last_box",
        "_last_dtype",
        "_place",
        "_replace",
        "_sizes",
        "_type",
    )

    def __init__(self, memory: memoryview, place: int) -> None:
        """For the map whose bytes are ``memory``, at the address ``place``."""
        self._bytes = memory
        self._elements, layout = _constants()
        self._encode, self._replace = driver.raw("cuTensorMapEncodeTiled"), driver.raw("cuTensorMapReplaceAddress")
        self._place, self._address = ctypes.c_void_p(place), ctypes.c_void_p(0)
        self._last_box: tuple[int, ...] = ()
        self._last_dtype = ""
        self._sizes, self._box, self._type = (ctypes.c_uint64 * 7)(), (ctypes.c_uint32 * 4)(), ctypes.c_int(0)
        # Note: the driver reads through these addresses in every call, so what they point to has to live as long.
        start = ctypes.addressof(self._sizes)
        dims, strides = ctypes.c_void_p(start), ctypes.c_void_p(start + _STRIDES_AT)
        self._arguments: tuple[Any, ...] = (
            self._place,
            self._type,
            4,
            self._address,
            dims,
            strides,
            self._box,
            _ONE,
            *layout,
        )

    def write(self, spec: TensorMapSpec) -> None:
        """Write the whole map; :class:`CudaError` repeats the description that the driver refused."""
        address, dtype, dims, strides, box = spec
        if box is not self._last_box or dtype is not self._last_dtype:
            _BOX.pack_into(self._box, 0, *box)
            self._type.value = self._elements[dtype]
            self._last_box, self._last_dtype = box, dtype
        try:
            self.rewrite(address, (*dims, *strides))
        except CudaError as error:
            raise CudaError(f"{error}; the map was {spec}") from error

    def rewrite(self, address: int, extent: Extent) -> None:
        """Write a map of the element type and box of the last one, over another tensor."""
        _pack_sizes(self._sizes, 0, *extent)
        self._address.value = address
        status = self._encode(*self._arguments)
        if status:
            driver.raise_for("cuTensorMapEncodeTiled", status)

    def copy(self, other: MapWriter, address: int) -> None:
        """Write a map that covers at ``address`` what ``other`` covers elsewhere, in the same type and box."""
        self._bytes[:] = other._bytes
        self._address.value = address
        status = self._replace(self._place, self._address)
        if status:
            driver.raise_for("cuTensorMapReplaceAddress", status)

    def move(self, address: int) -> None:
        """Point the map to another address."""
        self._address.value = address
        status = self._replace(self._place, self._address)
        if status:
            driver.raise_for("cuTensorMapReplaceAddress", status)
