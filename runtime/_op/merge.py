"""``torch.ops.skimattn.merge_states``: attention over some keys and over others becomes attention over them all.

Plain torch in float32. Every step is a function of single elements, taken in the order of the states, so the bits of a
row depend on its own states alone: not on its neighbours, their number, the strides or the device's schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.library import define, register_fake, register_kernel

from .._call.checks import describe, require_dtype, require_tensor
from ..errors import expected

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
States = Sequence[torch.Tensor]


def states_of(name: str, value: object) -> list[torch.Tensor]:
    """A sequence of tensors, or one tensor whose first dimension counts them, as a list."""
    if isinstance(value, torch.Tensor):
        if value.dim() < 1:
            raise expected(name, "a sequence of tensors, or states in the first dimension of one", describe(value))
        return list(require_tensor(name, value).unbind(0))
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise expected(name, "a tensor or a sequence of tensors", type(value).__name__)
    return [require_tensor(f"{name}[{index}]", tensor) for index, tensor in enumerate(value)]


def check_states(outs: States, lses: States) -> None:
    """:class:`~skimattn.errors.ArgumentError` unless they can be merged."""
    if not outs:
        raise expected("outs", "at least one state", "none")
    if len(lses) != len(outs):
        raise expected("lses", f"{len(outs)} states, like outs", len(lses))
    first = outs[0]
    if first.dim() < 2:
        raise expected("outs", "states of shape [..., H, D]", list(first.shape))
    for index, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        for name, tensor, dtypes, shape in (
            (f"outs[{index}]", out, _DTYPES if index == 0 else (first.dtype,), first.shape),
            (f"lses[{index}]", lse, (torch.float32,), first.shape[:-1]),
        ):
            require_tensor(name, tensor)
            require_dtype(name, tensor, *dtypes)
            if tensor.device != first.device:
                raise expected(name, f"a tensor on {first.device}, like outs[0]", tensor.device)
            if tensor.shape != shape:
                raise expected(name, f"shape {list(shape)}", list(tensor.shape))


def _merge(outs: States, lses: States) -> tuple[torch.Tensor, torch.Tensor]:
    check_states(outs, lses)
    # Contiguous: torch chooses by strides what it computes an exponential with.
    logs = [lse.contiguous() for lse in lses]
    highest = logs[0]
    for lse in logs[1:]:
        highest = torch.maximum(highest, lse)
    base = torch.where(highest == -torch.inf, 0.0, highest)
    total = torch.zeros_like(base)
    merged = torch.zeros(outs[0].shape, dtype=torch.float32, device=base.device)
    for out, lse in zip(outs, logs, strict=True):
        weight = torch.exp(lse - base)
        total += weight
        nothing = (lse == -torch.inf).unsqueeze(-1)  # whatever lies in its output, which nobody may have written
        merged += (out.float() * weight.unsqueeze(-1)).masked_fill_(nothing, 0.0)
    merged /= total.unsqueeze(-1)
    merged.masked_fill_((highest == -torch.inf).unsqueeze(-1), 0.0)
    return merged.to(outs[0].dtype), base + torch.log(total)


def _fake(outs: States, lses: States) -> tuple[torch.Tensor, torch.Tensor]:
    check_states(outs, lses)
    first = outs[0]
    return first.new_empty(first.shape), first.new_empty(first.shape[:-1], dtype=torch.float32)


_NAME = "skimattn::merge_states"
define(_NAME, "(Tensor[] outs, Tensor[] lses) -> (Tensor out, Tensor lse)", tags=(torch.Tag.pt2_compliant_tag,))
register_kernel(_NAME, ("cpu", "cuda"), _merge)
register_fake(_NAME, _fake)
