"""What this back end does not compute: refused when vLLM starts, each by vLLM's own name for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...errors import expected
from ..serving.refusals import OTHERWISE, refuse_dtype, refuse_head_size, refuse_kind, refuse_log_of_stages

CACHE_DTYPES = ("auto", "float16", "bfloat16", "fp8", "fp8_e4m3")
EIGHT_BITS = ("fp8", "fp8_e4m3")


def refuse_layer(
    *,
    head_size: int,
    dtype: torch.dtype,
    cache_dtype: str,
    model_dtype_of_cache: torch.dtype | None = None,
    attn_type: str,
    others: Mapping[str, object],
) -> None:
    """Refuse a layer that kernels do not compute.

    Args:
        head_size: columns of keys and values.
        dtype: of the model.
        cache_dtype: vLLM's ``kv_cache_dtype``.
        model_dtype_of_cache: what a 16-bit cache holds, if that is known to differ.
        attn_type: vLLM's.
        others: what vLLM hands to back ends beyond what all of them take.

    Raises:
        ArgumentError: the first thing that is not computed.
    """
    refuse_dtype(dtype)
    if cache_dtype not in CACHE_DTYPES:
        raise expected("kv_cache_dtype", f"one of {', '.join(CACHE_DTYPES)} ({OTHERWISE})", repr(cache_dtype))
    held = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(cache_dtype, dtype)
    if held != dtype or model_dtype_of_cache not in (None, dtype):
        raise expected("kv_cache_dtype", f"auto or an 8-bit type with a model of {dtype}", repr(cache_dtype))
    refuse_kind(attn_type)
    refuse_head_size(head_size, dtype, eight_bits=cache_dtype in EIGHT_BITS)
    for name in sorted(others):
        if others[name] is not None and others[name] is not False:
            raise expected(name, f"None, since it is not known here ({OTHERWISE})", repr(others[name]))


def refuse_deployment(*, decode_context: int, prefill_context: int, pipeline: int, has_log: bool) -> None:
    """Refuse kinds of parallelism.

    Args:
        decode_context: vLLM's ``decode_context_parallel_size``.
        prefill_context: its ``prefill_context_parallel_size``.
        pipeline: its ``pipeline_parallel_size``.
        has_log: whether steps are to be logged.

    Raises:
        ArgumentError: one that is not computed, or whose log could not be added up.
    """
    for name, size in (("decode", decode_context), ("prefill", prefill_context)):
        if size > 1:
            wanted = f"1, since keys of one request are on one rank here ({OTHERWISE})"
            raise expected(f"{name}_context_parallel_size", wanted, size)
    refuse_log_of_stages("pipeline_parallel_size", pipeline, has_log=has_log)
