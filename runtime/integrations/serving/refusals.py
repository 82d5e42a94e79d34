"""What no plug-in of a serving engine computes: refused when the engine starts, by name."""

from __future__ import annotations

import torch
from skimattn.codegen import matrix

from ..._call.dtypes import DTYPES
from ...errors import expected
from ...sparse.config.kernels import arch_here

OTHERWISE = "another --attention-backend computes it"


def head_size_taken(head_size: int, dtype: str = "bf16") -> bool:
    """Whether kernels take heads of so many columns, on the GPU that is here, or else on what the reference is."""
    step = 16 if dtype == "e4m3" else 8
    return head_size % step == 0 and matrix.head_dims(arch_here(), "prefill", dtype, head_size, head_size) is not None


def refuse_dtype(dtype: torch.dtype) -> None:
    """Refuse models that are not of 16 bits; raises ``ArgumentError``."""
    if dtype not in (torch.bfloat16, torch.float16):
        raise expected("dtype", f"bfloat16 or float16 ({OTHERWISE})", dtype)


def refuse_kind(attn_type: str) -> None:
    """Refuse what is not decoder attention; raises ``ArgumentError``."""
    if attn_type != "decoder":
        raise expected("attn_type", f"decoder ({OTHERWISE})", repr(attn_type))


def refuse_head_size(head_size: int, dtype: torch.dtype, *, eight_bits: bool = False) -> None:
    """Refuse heads that kernels do not take; raises ``ArgumentError``.

    Args:
        head_size: columns of keys and values.
        dtype: of the model.
        eight_bits: whether caches are of 8 bits.
    """
    if not head_size_taken(head_size, "e4m3" if eight_bits else DTYPES[dtype]):
        known = matrix.dims_of(arch_here(), "prefill", DTYPES[dtype])
        most = max(dims[0] for dims in known)
        raise expected("head_size", f"a multiple of 8 (16 with an 8-bit cache) of at most {most}", head_size)


def refuse_log_of_stages(argument: str, stages: int, *, has_log: bool) -> None:
    """Refuse a log that could not be added up; raises ``ArgumentError``.

    Args:
        argument: the engine's name of pipeline parallelism.
        stages: of it.
        has_log: whether steps are to be logged.
    """
    if has_log and stages > 1:
        raise expected("stat_log", f"none with {argument} above 1: stages have other layers", stages)
