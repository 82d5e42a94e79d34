"""Which torch dtypes kernels read and write, and what they are called in kernel specs."""

from __future__ import annotations

import torch

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float8_e4m3fn: "e4m3"}


def keys_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """What keys and values of ``dtype`` queries may be stored in: the same, or less in a cache."""
    return (dtype,) if dtype.itemsize == 1 else (dtype, torch.float8_e4m3fn)


def default_out_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a call writes where no ``out`` says otherwise: what it reads, or bf16 if that has 8 bits."""
    return torch.bfloat16 if dtype.itemsize == 1 else dtype


def out_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """What kernels that read ``dtype`` write: 16 bits."""
    return (torch.bfloat16, torch.float16) if dtype.itemsize == 1 else (dtype,)
