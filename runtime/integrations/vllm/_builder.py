"""What vLLM calls before every forward: it describes the batch, and says what each layer skips in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder

from ...errors import expected
from ...sparse.config.dialects import KEY
from ..serving import worker
from ..serving.call import Batch
from ..serving.channel import open_channel, write_tiles
from ..serving.skipping import which_decode
from ..serving.worker import Layer, Share
from ._refusals import refuse_deployment
from ._settings import Settings, read_settings


class Builder(AttentionMetadataBuilder[Batch]):
    """Describes batches to the layers of one kind. Arguments are vLLM's."""

    # Full graphs of batches in which all requests have as many rows: those that decode, speculative ones among them.
    # A prompt's rows may be more than a graph was captured for.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH
    reorder_batch_threshold: int | None = None

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        """Find out what the layers skip."""
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._worker = worker_of(vllm_config, device)  # which lives as long as its builders
        layers = vllm_config.compilation_config.static_forward_context
        for name in layer_names:
            if layers[name].head_size_v != layers[name].head_size:
                raise expected("head_size_v", f"{layers[name].head_size}, like head_size", layers[name].head_size_v)
        self._statistics = self._worker.statistics
        self._skipping = self._worker.skipping(layer_names, vllm_config.scheduler_config.max_num_seqs)
        speculative = getattr(vllm_config.speculative_config, "num_speculative_tokens", None)
        self._decode_rows = 1 + (speculative or 0)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Batch:
        """The batch; nothing waits for the device."""
        del common_prefix_len, fast_build
        return self._build(common_attn_metadata, captured=False)

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Batch:
        """The batch of a graph that others will replay: layers skip in it by thresholds that are set later."""
        return self._build(common_attn_metadata, captured=True)

    def _build(self, common: Any, *, captured: bool) -> Batch:
        if common.causal is not True:
            raise expected("causal", "True (use another --attention-backend)", common.causal)
        skips: Mapping[str, Mapping[str, torch.Tensor]] = {}
        if self._skipping is not None:
            starts = common.query_start_loc_cpu
            decodes = which_decode(common.is_prefilling, starts, self._decode_rows)
            if self._statistics is not None:
                self._statistics.begin(self._skipping, decodes, starts, real=not captured)
            skips = self._skipping.prepare(decodes, common.seq_lens, whole=captured)
        return Batch(
            tokens=common.num_actual_tokens,
            starts=common.query_start_loc,
            lengths=common.seq_lens,
            table=common.block_table_tensor,
            longest_q=common.max_query_len,
            longest_k=common.max_seq_len,
            skips=skips,
        )


class Worker(worker.Worker):
    """What the layers of a worker are told, read once, and their statistics.

    Args:
        vllm_config: vLLM's.
        device: of the layers.
    """

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        """Read the settings; raises ``ArgumentError`` for what cannot be honoured."""
        parallel = vllm_config.parallel_config
        settings = settings_of(vllm_config)
        refuse_deployment(
            decode_context=parallel.decode_context_parallel_size,
            prefill_context=getattr(parallel, "prefill_context_parallel_size", 1),
            pipeline=parallel.pipeline_parallel_size,
            has_log=settings.stat_log is not None,
        )
        self.context = vllm_config.compilation_config.static_forward_context
        engine, engines = parallel.data_parallel_rank, parallel.data_parallel_size
        ranks, stages = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
        super().__init__(
            settings,
            _our_layers(vllm_config),
            Share(get_tensor_model_parallel_rank(), ranks, all_layers=stages == 1),
            device,
            settings.log_of(engine, engines),
            partial(write_tiles, open_channel(), engine, _rank(parallel)) if settings.metrics else None,
        )


def _our_layers(vllm_config: Any) -> dict[str, Layer]:
    """The attention layers that this back end computes, by name."""
    from ._backend import SkimAttention

    context = vllm_config.compilation_config.static_forward_context
    ours = {name: layer for name, layer in context.items() if isinstance(getattr(layer, "impl", None), SkimAttention)}
    return {name: Layer(layer, layer.num_heads, layer.sliding_window) for name, layer in ours.items()}


def settings_of(vllm_config: Any) -> Settings:
    """The settings of a deployment; raises as :func:`read_settings`."""
    additional = vllm_config.additional_config
    section = getattr(vllm_config.model_config.hf_config, KEY, None)
    return read_settings(additional if isinstance(additional, Mapping) else {}, section)


def _rank(parallel: Any) -> int:
    if parallel.rank:
        return int(parallel.rank)
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


_workers: WeakValueDictionary[int, Worker] = WeakValueDictionary()


def worker_of(vllm_config: Any, device: torch.device) -> Worker:
    """The worker of an engine: builders of all kinds of layers share it."""
    context = vllm_config.compilation_config.static_forward_context
    known = _workers.get(id(context))
    if known is None:
        known = _workers[id(context)] = Worker(vllm_config, device)
    return known
