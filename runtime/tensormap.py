"""TMA tensor maps: from the plan's description to the driver's 128 bytes."""

from __future__ import annotations

from functools import cache
from typing import Any

from . import driver
from .errors import CudaError
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


def encode(spec: TensorMapSpec) -> Any:
    """The driver's ``CUtensorMap``; :class:`CudaError` repeats the description that the driver refused."""
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
