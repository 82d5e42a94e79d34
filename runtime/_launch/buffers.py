"""The tensors a launch needs beyond those of the call: new outputs, and inputs in the form that kernels read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._call.dtypes import default_out_dtype
from .._call.masks import pack_mask
from ..params import Params

ARGUMENTS = ("out", "lse", "custom_mask", "sinks")  # whose tensor a launch may make itself
WORKSPACE = "workspace"  # which is no argument


@dataclass(slots=True, eq=False)
class Buffers:
    """The tensors of a launch that the call may not hold as they are: outputs, the packed mask, float32 sinks."""

    out: torch.Tensor
    lse: torch.Tensor | None = None
    custom_mask: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    workspace: torch.Tensor | None = None

    def made(self, params: Params) -> tuple[str, ...]:
        """The names of those that the call does not hold."""
        made = [name for name in ARGUMENTS if getattr(self, name) is not getattr(params, name)]
        return tuple(made if self.workspace is None else [*made, WORKSPACE])

    def addresses(self, params: Params) -> list[int]:
        """Their addresses, in the same order."""
        return [getattr(self, name).data_ptr() for name in self.made(params)]


def make_buffers(params: Params, out_shape: tuple[int, ...], workspace_floats: int = 0) -> Buffers:
    """Allocate what the caller did not give, on torch's current stream. Nothing is initialised but copies."""
    out, lse, mask = params.out, params.lse, params.custom_mask
    if out is None:
        out = params.q.new_empty(out_shape, dtype=default_out_dtype(params.q.dtype))
    if lse is None and params.return_lse:
        lse = params.q.new_empty(out_shape[:-1], dtype=torch.float32)
    if mask is not None and mask.dtype == torch.bool:
        mask = pack_mask(mask)
    sinks = None if params.sinks is None else params.sinks.to(torch.float32)
    workspace = params.q.new_empty(workspace_floats, dtype=torch.float32) if workspace_floats else None
    return Buffers(out, lse, mask, sinks, workspace)
