"""What this back end does not compute: refused when SGLang starts, each by SGLang's own name for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...errors import expected
from ..serving.refusals import OTHERWISE, refuse_dtype, refuse_head_size, refuse_kind

PLAIN: dict[str, Any] = {  # of SGLang's arguments, what they have to be
    "attn_cp_size": 1,
    "dcp_size": 1,
    "speculative_algorithm": None,
    "dllm_algorithm": None,
    "enable_two_batch_overlap": False,
    "enable_pdmux": False,
}
_PLAIN_OF_LAYERS = {"use_irope": False, "pos_encoding_mode": "NONE", "logit_capping_method": "tanh"}
SMALL_PAGES, PAGE_STEP, LARGEST_PAGE = (1, 2, 4, 8), 16, 1024


def refuse_deployment(
    arguments: Mapping[str, Any], *, page_size: int, backends: tuple[str, str], name: str, pool: str, layout: str
) -> None:
    """Refuse a deployment that kernels or thresholds could not serve.

    Args:
        arguments: SGLang's, those of ``PLAIN``.
        page_size: keys in a page.
        backends: of prefill and of decode.
        name: of this one.
        pool: the class of the cache.
        layout: of the cache.

    Raises:
        ArgumentError: the first thing that is not computed.
    """
    for key, plain in PLAIN.items():
        if arguments[key] not in (plain, None):
            raise expected(key, f"{plain} ({OTHERWISE})", repr(arguments[key]))
    if set(backends) != {name}:
        raise expected("attention_backend", f"{name} for prefill and for decode", " and ".join(backends))
    if page_size not in SMALL_PAGES and (page_size % PAGE_STEP or not 0 < page_size <= LARGEST_PAGE):
        wanted = f"a multiple of {PAGE_STEP} up to {LARGEST_PAGE}, or {', '.join(map(str, SMALL_PAGES))}"
        raise expected("page_size", wanted, page_size)
    if pool != "MHATokenToKVPool":
        raise expected("model", f"one with keys and values in an MHATokenToKVPool ({OTHERWISE})", pool)
    if layout != "nhd":
        raise expected("kv_cache_layout", f"nhd ({OTHERWISE})", repr(layout))


def refuse_layer(layer: Any, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    """Refuse a layer that kernels do not compute.

    Args:
        layer: SGLang's ``RadixAttention``.
        dtype: of the model.
        cache_dtype: of its cache.

    Raises:
        ArgumentError: the first thing that is not computed.
    """
    refuse_dtype(dtype)
    if cache_dtype != dtype:
        raise expected("kv_cache_dtype", f"auto, which is {dtype} here ({OTHERWISE})", cache_dtype)
    refuse_kind("cross attention" if layer.is_cross_attention else layer.attn_type.value)
    if layer.v_head_dim != layer.qk_head_dim:
        raise expected("v_head_dim", f"{layer.qk_head_dim}, like head_dim ({OTHERWISE})", layer.v_head_dim)
    refuse_head_size(layer.qk_head_dim, dtype)
    for key, plain in _PLAIN_OF_LAYERS.items():
        if getattr(layer, key) != plain:
            raise expected(key, f"{plain} ({OTHERWISE})", repr(getattr(layer, key)))
    if (layer.xai_temperature_len or 0) > 0:
        raise expected("xai_temperature_len", f"none ({OTHERWISE})", layer.xai_temperature_len)


def refuse_extras(extras: Mapping[str, object]) -> None:
    """Refuse what a model hands to attention beyond what is known here; raises ``ArgumentError``."""
    for key in sorted(extras):
        if extras[key] is not None and extras[key] is not False:
            raise expected(key, f"None, since it is not known here ({OTHERWISE})", type(extras[key]).__name__)
