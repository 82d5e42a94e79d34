"""The tensors a launch needs beyond those of the call: new outputs, and the custom mask in packed form."""

from __future__ import annotations

import torch

from .call import Params
from .plan import Buffers
from .validate_options import pack_mask


def default_out_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a call writes where no ``out`` says otherwise: what it reads, or bf16 if that has 8 bits."""
    return torch.bfloat16 if dtype.itemsize == 1 else dtype


def make_buffers(params: Params, out_shape: tuple[int, ...]) -> Buffers:
    """Allocate what the caller did not give, on torch's current stream. New outputs are not initialised."""
    out, lse, mask = params.out, params.lse, params.custom_mask
    if out is None:
        out = params.q.new_empty(out_shape, dtype=default_out_dtype(params.q.dtype))
    if lse is None and params.return_lse:
        lse = params.q.new_empty(out_shape[:-1], dtype=torch.float32)
    if mask is not None and mask.dtype == torch.bool:
        mask = pack_mask(mask)
    return Buffers(out, lse, mask)
