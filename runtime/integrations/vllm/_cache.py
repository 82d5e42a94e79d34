"""Where keys and values lie in vLLM's cache, in both generations of its back-end interface. All that differs is here.

Up to 0.29 a back end says what its cache looks like: ours is ``[blocks, 2, block, Hkv, D]``. From 0.30 on it always is
``[blocks, Hkv, block, 2 * D]``, keys before values in each row, and a back end says which orders in memory it reads.
"""

from __future__ import annotations

from typing import Any

import torch

from ...errors import expected
from ..serving.call import Pages

BLOCK_STEP = 16  # keys in a block: a multiple
Scales = tuple[float, float]  # of keys and of values


def pages_of(cache: torch.Tensor, head_size: int) -> Pages:
    """Keys and values in a layer's cache of either generation.

    Args:
        cache: as vLLM hands it over; 8-bit ones are e4m3, whatever they say.
        head_size: columns of keys, and of values.

    Raises:
        ArgumentError: it is laid out otherwise.
    """
    if cache.dtype == torch.uint8:
        cache = cache.view(torch.float8_e4m3fn)
    if cache.dim() == 5 and cache.shape[1] == 2 and cache.shape[-1] == head_size:
        k, v = cache.unbind(1)
        return Pages(k, v, "NHD")
    if cache.dim() == 4 and cache.shape[-1] == 2 * head_size:
        return Pages(cache[..., :head_size], cache[..., head_size:], "HND")
    wanted = f"[blocks, 2, block, Hkv, {head_size}] or [blocks, Hkv, block, {2 * head_size}]"
    raise expected("kv_cache", wanted, list(cache.shape))


class CacheOfBackend:
    """What a back end says of its cache; each generation asks what it knows."""

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, cache_dtype_str: str = "auto"
    ) -> tuple[int, ...]:
        """Up to 0.29: ``[blocks, 2, block, Hkv, D]``."""
        del cache_dtype_str
        if block_size % BLOCK_STEP:
            raise expected("block_size", f"a multiple of {BLOCK_STEP}", block_size)
        return num_blocks, 2, block_size, num_kv_heads, head_size

    @staticmethod
    def get_kv_cache_stride_order(include_num_layers_dimension: bool = False) -> tuple[int, ...]:
        """Up to 0.29: as it is shaped."""
        return tuple(range(6 if include_num_layers_dimension else 5))

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[Any, ...]:
        """From 0.30 on: layers one after the other, heads of a block one after the other or keys before heads."""
        from vllm.v1.kv_cache_interface import KVCacheLayout

        return KVCacheLayout.LBHNC, KVCacheLayout.LBNHC


def write(pages: Pages, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scales: Scales) -> None:
    """Write keys and values into their slots, on a CPU.

    Args:
        pages: of the layer.
        slots: integers ``[tokens]``: block times its size, plus the place in it; -1: none.
        key: ``[tokens or more, Hkv, D]``.
        value: likewise.
        scales: of keys and values in 8-bit caches, which hold them divided by these.
    """
    used = slots >= 0
    block, place = slots[used] // pages.block, slots[used] % pages.block
    for held, new, scale in zip(pages.by_slot, (key, value), scales, strict=True):
        rows = new[: len(slots)][used]
        if held.dtype == torch.float8_e4m3fn:
            most = torch.finfo(held.dtype).max
            # Torch has no indexed write of 8-bit floats: their bits do.
            bits = (rows.float() / scale).clamp(-most, most).to(held.dtype).view(torch.uint8)
            held.view(torch.uint8)[block, place] = bits
        else:
            held[block, place] = rows
