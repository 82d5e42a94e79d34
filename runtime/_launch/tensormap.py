"""TMA tensor maps: from the plan's description to the driver's 128 bytes."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from skimattn.codegen.params import TENSOR_MAP_BYTES

from .._cuda import driver
from ..errors import CudaError
from .plan import MapForm, TensorMapSpec

_ANYWHERE = 1 << 20  # an address that every map accepts


@cache
def _constants() -> tuple[dict[str, Any], tuple[Any, Any, Any, Any]]:
    cuda = driver.bindings()
    types = cuda.CUtensorMapDataType
    elements = {
        "bf16": types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        "e4m3": types.CU_TENSOR_MAP_DATA_TYPE_UINT8,
        "fp16": types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    }
    layout = (
        cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,  # zeros
    )
    return elements, layout


class MapWriter:
    """Writes maps into the parameter block of a launch, which its owner keeps alive."""

    __slots__ = ("_address", "_place", "_replace")

    def __init__(self, address: int) -> None:
        """For the map at ``address``."""
        cuda = driver.bindings()
        self._address, self._place = address, cuda.CUtensorMap(_ptr=address)
        self._replace = cuda.cuTensorMapReplaceAddress

    def write(self, spec: TensorMapSpec) -> None:
        """Write the whole map; :class:`CudaError` repeats the description that the driver refused."""
        try:
            form = spec.form
            form.encoded = form.encoded or _encode(form)
            ctypes.memmove(self._address, form.encoded, TENSOR_MAP_BYTES)
            self.move(spec.address)
        except CudaError as error:
            raise CudaError(f"{error}; the map was {spec}") from error

    def move(self, address: int) -> None:
        """Point the map to another address."""
        (status,) = self._replace(self._place, address)
        if status:
            driver.raise_for("cuTensorMapReplaceAddress", status)


def _encode(form: MapForm) -> bytes:
    """The bytes of a map over memory anywhere."""
    cuda, (elements, layout) = driver.bindings(), _constants()
    wide, narrow = cuda.cuuint64_t, cuda.cuuint32_t
    status, *encoded = cuda.cuTensorMapEncodeTiled(
        elements[form.dtype],
        len(form.dims),
        _ANYWHERE,
        [wide(size) for size in form.dims],
        [wide(stride) for stride in form.strides],
        [narrow(size) for size in form.box],
        [narrow(1)] * len(form.dims),
        *layout,
    )
    if status:
        driver.raise_for("cuTensorMapEncodeTiled", status)
    # Note: the bytes belong to `encoded`. An address taken from an object that nothing holds is one of freed memory.
    return ctypes.string_at(int(encoded[0].getPtr()), TENSOR_MAP_BYTES)
