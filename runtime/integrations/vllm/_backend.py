"""The back end as vLLM knows it: its class and what computes a layer. Imported by vLLM, by the name that is registered.

Both generations of the interface are served; what differs is in :mod:`._cache`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionType, MultipleOf

from ...api import launch
from ..serving.call import Batch, LayerOptions, Pages, params_of
from ..serving.refusals import head_size_taken
from ._builder import Builder
from ._cache import BLOCK_STEP, CacheOfBackend, pages_of, write
from ._refusals import CACHE_DTYPES, EIGHT_BITS, refuse_layer


class SkimAttentionBackend(CacheOfBackend, AttentionBackend):
    """skimattn as an attention back end of vLLM."""

    forward_includes_kv_cache_update: bool = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = list(CACHE_DTYPES)

    @staticmethod
    def get_name() -> str:
        """A member of vLLM's enum."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[SkimAttention]:
        """What computes a layer."""
        return SkimAttention

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        """What describes a batch."""
        return Builder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """Multiples of 16, whatever the layer."""
        del kv_cache_spec
        return [MultipleOf(BLOCK_STEP)]

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        """A tile of keys where nobody asks for another size: smaller blocks are copied in smaller pieces."""
        return max(default_block_size, 128)

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        """Whether kernels take it."""
        return head_size_taken(head_size)

    @classmethod
    def supports_sink(cls) -> bool:
        """An extra logit for each head."""
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """A window of keys to the left."""
        return True


class SkimAttention(AttentionImpl[Batch]):
    """Attention of one layer. Arguments are vLLM's; raises ``ArgumentError`` for what is not computed."""

    supports_pcp: bool = False
    supports_dcp: bool = False

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
        **others: Any,
    ) -> None:
        """Keep what the layer is."""
        refuse_layer(
            head_size=head_size,
            dtype=get_current_vllm_config().model_config.dtype,
            cache_dtype=kv_cache_dtype,
            attn_type=str(getattr(attn_type, "value", attn_type)),
            others=others,
        )
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.sliding_window, self.logits_soft_cap = sliding_window, logits_soft_cap
        self.alibi_slopes, self.sinks = alibi_slopes, sinks
        self.kv_cache_dtype = kv_cache_dtype
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.supports_quant_query_input = kv_cache_dtype in EIGHT_BITS
        self._options: LayerOptions | None = None
        self._seen: tuple[torch.Tensor, Pages] | None = None

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Weights have been loaded: sinks are among them."""
        del act_dtype
        self._options = None

    def _layer_options(self, device: torch.device) -> LayerOptions:
        if self._options is None:
            slopes = self.alibi_slopes
            self._options = LayerOptions(
                scale=self.scale,
                window=self.sliding_window,
                softcap=self.logits_soft_cap or 0.0,
                alibi_slopes=None if slopes is None else torch.tensor(slopes, dtype=torch.float32, device=device),
                sinks=None if self.sinks is None else self.sinks.detach().to(device, torch.float32),
            )
        return self._options

    def _pages(self, cache: torch.Tensor) -> Pages:
        if self._seen is None or self._seen[0] is not cache:
            self._seen = cache, pages_of(cache, self.head_size)
        return self._seen[1]

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Batch | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of ``query`` ``[tokens, Hq, D]`` into ``output``; keys and values are in the cache already."""
        del key, value
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("output_scale: skimattn writes 16 bits, and vLLM was told so")
        if attn_metadata is None:  # memory is being measured
            return output.fill_(0)
        options = self._layer_options(query.device)
        descales = None
        if self.supports_quant_query_input:
            scales = {"q": layer._q_scale, "k": layer._k_scale, "v": layer._v_scale}
            descales = {f"{name}_descale": scale.view(-1) for name, scale in scales.items()}
        launch(params_of(attn_metadata, layer.layer_name, options, query, self._pages(kv_cache), output, descales))
        return output

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """Write ``[tokens, Hkv, D]`` into their slots; -1 is none."""
        pages = self._pages(kv_cache)
        if key.device.type == "cpu":
            scales = layer._k_scale_float, layer._v_scale_float
            write(pages, slot_mapping.flatten(), key, value, scales)
            return
        from vllm._custom_ops import reshape_and_cache_flash

        k, v = pages.by_slot
        if k.dtype == torch.float8_e4m3fn:  # its caches are bytes to this operator
            k, v = k.view(torch.uint8), v.view(torch.uint8)
        scales = layer._k_scale, layer._v_scale
        reshape_and_cache_flash(key, value, k, v, slot_mapping.flatten(), self.kv_cache_dtype, *scales)
