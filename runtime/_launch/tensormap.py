"""TMA tensor maps: from the plan's description to the driver's 128 bytes."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from skimattn.codegen.params import TENSOR_MAP_BYTES

from .._cuda import driver
from ..errors import CudaError
from .plan import TensorMapSpec


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


def write(spec: TensorMapSpec, address: int) -> None:
    """Encode the map and copy its 128 bytes to ``address``; :class:`CudaError` repeats what the driver refused."""
    encoded = _encode(spec)
    # Note: the bytes belong to `encoded`. An address taken from an object that nothing holds is one of freed memory.
    ctypes.memmove(address, int(encoded.getPtr()), TENSOR_MAP_BYTES)


def _encode(spec: TensorMapSpec) -> Any:
    cuda, (elements, layout) = driver.bindings(), _constants()
    wide, narrow = cuda.cuuint64_t, cuda.cuuint32_t
    try:
        return driver.call(
            "cuTensorMapEncodeTiled",
            elements[spec.dtype],
            len(spec.dims),
            spec.address,
            [wide(size) for size in spec.dims],
            [wide(stride) for stride in spec.strides],
            [narrow(size) for size in (*spec.box, 1, 1)],
            [narrow(1)] * len(spec.dims),
            *layout,
        )
    except CudaError as error:
        raise CudaError(f"{error}; the map was {spec}") from error
