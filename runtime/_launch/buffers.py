"""The tensors a launch needs beyond those of the call: new outputs, and inputs in the form that kernels read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._call.dtypes import default_out_dtype
from .._call.masks import pack_mask
from ..params import Params

NAMES = ("out", "lse", "custom_mask", "sinks")  # of arguments whose tensor a launch may make itself


@dataclass(slots=True, eq=False)
class Buffers:
    """The tensors of a launch that the call may not hold as they are: outputs, the packed mask, float32 sinks."""

    out: torch.Tensor
    lse: torch.Tensor | None = None
    custom_mask: torch.Tensor | None = None
    sinks: torch.Tensor | None = None

    def made(self, params: Params) -> tuple[str, ...]:
        """The names of those that the call does not hold."""
        return tuple([name for name in NAMES if getattr(self, name) is not getattr(params, name)])

    def addresses(self, params: Params) -> list[int]:
        """Their addresses, in the same order."""
        return [getattr(self, name).data_ptr() for name in self.made(params)]


def make_buffers(params: Params, out_shape: tuple[int, ...]) -> Buffers:
    """Allocate what the caller did not give, on torch's current stream. New outputs are not initialised."""
    out, lse, mask = params.out, params.lse, params.custom_mask
    if out is None:
        out = params.q.new_empty(out_shape, dtype=default_out_dtype(params.q.dtype))
    if lse is None and params.return_lse:
        lse = params.q.new_empty(out_shape[:-1], dtype=torch.float32)
    if mask is not None and mask.dtype == torch.bool:
        mask = pack_mask(mask)
    sinks = None if params.sinks is None else params.sinks.to(torch.float32)
    return Buffers(out, lse, mask, sinks)
