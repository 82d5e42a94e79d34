"""The back end as SGLang knows it: it describes forwards, and computes layers. Imported when SGLang makes one."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.runtime_context import get_parallel

from ...api import launch
from ...errors import expected
from ...sparse.config.dialects import KEY
from ..serving.call import LayerOptions, Pages, params_of
from ..serving.channel import open_channel
from ..serving.refusals import refuse_log_of_stages
from ..serving.skipping import Arguments
from ..serving.worker import Layer, Share, Worker
from . import _scheduled
from ._batch import Pair, Requests, Static, Tables, of_requests, phases, starts_of
from ._metrics import shown
from ._refusals import PLAIN, refuse_deployment, refuse_extras, refuse_layer
from ._register import NAME
from ._settings import read_settings


class SkimAttentionBackend(AttentionBackend):
    """skimattn as an attention back end of SGLang. Arguments are SGLang's."""

    def __init__(self, runner: Any) -> None:
        """Find out what the layers skip; raises ``ArgumentError`` for what is not computed."""
        super().__init__()
        layers = _layers(runner)
        _refuse(runner, layers)
        self._names = {layer.layer_id: name for name, layer in layers.items()}
        self._options = {layer.layer_id: _options(layer) for layer in layers.values()}
        self._pool = runner.token_to_kv_pool
        self._page = runner.page_size
        self._longest = runner.model_config.context_len
        self._device = torch.device(runner.device)
        self._windows = isinstance(self._pool, SWAKVPool) and self._pool.swa_layer_nums > 0
        windows = self._pool.translate_loc_from_full_to_swa if self._windows else None
        self._tables = Tables(runner.req_to_token_pool.req_to_token, self._page, windows)
        self._worker = worker_of(runner, layers, self._device)
        self._statistics = self._worker.statistics
        if self._statistics is not None:
            _scheduled.tell(self._statistics)
        kinds: defaultdict[int, list[str]] = defaultdict(list)
        for name, layer in layers.items():
            kinds[layer.tp_q_head_num].append(name)
        most = runner.req_to_token_pool.size
        kept = [self._worker.skipping(names, most) for names in kinds.values()]
        self._skipping = [one for one in kept if one is not None]
        self._forward: Pair | None = None
        self._window_places: torch.Tensor | None = None
        self._static: Static | None = None
        self._static_places: torch.Tensor | None = None

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Describe a forward that no graph holds; nothing waits for the device."""
        mode, batch = forward_batch.forward_mode, forward_batch.batch_size
        self._forward = None
        if mode.is_idle() or batch == 0:
            return
        scheduled = _scheduled.last()
        if mode.is_decode():
            rows, decoding = [1] * batch, batch
        elif mode.is_extend_without_speculative() and not mode.is_dllm_extend() and not mode.is_split_prefill():
            rows, decoding = list(forward_batch.extend_seq_lens_cpu), 0
            if scheduled is not None and scheduled.requests == batch:
                decoding = scheduled.decoding
            elif mode.is_mixed():
                raise expected("requests", "as many as were scheduled", f"{batch} of {scheduled}")
        else:
            raise expected("forward_mode", "EXTEND, MIXED or DECODE", mode.name)
        longest = int(forward_batch.seq_lens_cpu.max())
        requests = Requests(forward_batch.req_pool_indices, forward_batch.seq_lens, rows, longest)
        skips = self._begin(phases(batch, decoding), rows, requests.lengths, real=scheduled is not None)
        self._forward = of_requests(requests, self._tables, skips)
        if self._windows and forward_batch.out_cache_loc is not None:
            self._window_places = self._pool.translate_loc_from_full_to_swa(forward_batch.out_cache_loc)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Allocate what graphs read."""
        self._static = Static(max_bs, self._tables, self._longest, self._device)
        for skipping in self._skipping:
            skipping.reserve(max_bs)
        if self._windows:
            self._static_places = torch.zeros(max_num_tokens, dtype=torch.int64, device=self._device)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Describe a forward that a graph holds or is to hold, in memory that stays where it is."""
        mode, batch = forward_batch.forward_mode, forward_batch.batch_size
        if not mode.is_decode_or_idle() or self._static is None:
            raise expected("forward_mode", "DECODE in a CUDA graph", mode.name)
        real = batch - getattr(forward_batch, "num_padding", 0)
        lengths = self._static.fill(forward_batch.req_pool_indices, forward_batch.seq_lens, real)
        rows = [1] * real + [0] * (batch - real)
        skips = self._begin(phases(batch, batch), rows, lengths, real=not in_capture, whole=True)
        self._forward = self._static.pair(batch, skips)
        if self._static_places is not None:
            self._window_places = self._fill_places(self._static_places, forward_batch.out_cache_loc, in_capture)

    def _fill_places(self, places: torch.Tensor, loc: torch.Tensor, in_capture: bool) -> torch.Tensor:
        here = places[: len(loc)]
        places[len(loc) :].zero_()  # rows that pad write where nobody reads
        if in_capture:
            return here.zero_()
        return here.copy_(self._pool.translate_loc_from_full_to_swa(loc))

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Keys of requests that pad a graph, as the rest of SGLang sees them; attention gives them none."""
        return 1

    def support_triton(self) -> bool:
        """Whether SGLang may write its tables by Triton."""
        return self._device.type == "cuda"

    def _begin(
        self, decodes: torch.Tensor, rows: list[int], lengths: torch.Tensor, *, real: bool, whole: bool = False
    ) -> Arguments:
        """What layers skip in this forward, by name."""
        skips: dict[str, Any] = {}
        for skipping in self._skipping:
            if self._statistics is not None:
                self._statistics.begin(skipping, decodes, starts_of(rows), real=real)
            skips |= skipping.prepare(decodes, lengths, whole=whole)
        return skips

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **extras: Any
    ) -> torch.Tensor:
        """Attention of ``q`` ``[tokens, Hq * D]``, shaped like it; keys and values are written first."""
        sinks = extras.pop("sinks", None)
        refuse_extras(extras)
        given = getattr(forward_batch, "_attn_output", None)
        rows = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = torch.empty_like(rows) if given is None else given.view(rows.shape)
        if self._forward is None:
            raise expected("forward_metadata", "a forward that was described before", "none")
        if save_kv_cache and k is not None:
            places = KVWriteLoc.for_batch(forward_batch, swa_loc=self._window_places)
            self._pool.set_kv_buffer(layer, places, k, v)
        batch = self._forward.full
        if self._forward.window is not None and self._pool.layers_mapping[layer.layer_id][1]:
            batch = self._forward.window
        options = self._options[layer.layer_id]
        if sinks is not None:
            options = options.with_sinks(sinks)
        launch(params_of(batch, self._names[layer.layer_id], options, rows, self._pages(layer), out))
        return out.view(-1, layer.tp_q_head_num * layer.v_head_dim)

    forward_decode = forward_extend

    def _pages(self, layer: Any) -> Pages:
        shape = (-1, self._page, layer.tp_k_head_num, layer.qk_head_dim)
        keys, values = self._pool.get_key_buffer(layer.layer_id), self._pool.get_value_buffer(layer.layer_id)
        whole = len(keys) // self._page * self._page
        return Pages(keys[:whole].view(shape), values[:whole].view(shape), "NHD")


def _layers(runner: Any) -> dict[str, Any]:
    return {name: module for name, module in runner.model.named_modules() if isinstance(module, RadixAttention)}


def _window(layer: Any) -> int | None:
    """Keys that a row sees: SGLang does not count the row's own."""
    size = layer.sliding_window_size
    return None if size is None or size < 0 else size + 1


def _options(layer: Any) -> LayerOptions:
    return LayerOptions(scale=float(layer.scaling), window=_window(layer), softcap=layer.logit_cap or 0.0)


def _refuse(runner: Any, layers: dict[str, Any]) -> None:
    view = resolved_view(runner.server_args)
    pool = runner.token_to_kv_pool
    for part in (pool.full_kv_pool, pool.swa_kv_pool) if isinstance(pool, SWAKVPool) else (pool,):
        refuse_deployment(
            {key: getattr(view, key) for key in PLAIN},
            page_size=runner.page_size,
            backends=(runner.prefill_attention_backend_str, runner.decode_attention_backend_str),
            name=NAME,
            pool=type(part).__name__,
            layout=getattr(part, "kv_cache_layout", "nhd"),
        )
    for layer in layers.values():
        refuse_layer(layer, runner.model_config.dtype, runner.kv_cache_dtype)
    if not hasattr(ForwardBatch.init_new, "__wrapped__"):
        raise expected("plug-in", "skimattn loaded by SGLang, which applies its hooks", "hooks that are not applied")


def worker_of(runner: Any, layers: dict[str, Any], device: torch.device) -> Worker:
    """What the layers of this process are told."""
    view, parallel = resolved_view(runner.server_args), get_parallel()
    section = getattr(runner.model_config.hf_config, KEY, None)
    settings = read_settings(view.json_model_override_args, section)
    refuse_log_of_stages("pp_size", parallel.pp_size, has_log=settings.stat_log is not None)
    engine = parallel.dp_rank if parallel.dp_rank is not None else parallel.attn_dp_rank
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    show = None
    if settings.metrics:
        show = shown(open_channel(), engine, rank, view.served_model_name if view.enable_metrics else None)
    return Worker(
        settings,
        {name: Layer(layer, layer.tp_q_head_num, _window(layer)) for name, layer in layers.items()},
        Share(parallel.attn_tp_rank, parallel.attn_tp_size, all_layers=parallel.pp_size == 1),
        device,
        settings.log_of(engine, parallel.num_dp_ranks),
        show,
    )
