"""What ``bench rows`` times: our kernels and the peers, on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import skimattn
import torch

from . import peers
from .contender import Contender, contender, first
from .inputs import Inputs
from .names import DENSE, IN_BF16, THRESHOLD, TWICE, skip_name
from .peers import MissingError, fa3_forward, fa3_operators, module_of
from .prefill_inputs import Data
from .prefill_work import Work
from .shape import Shape

Maker = Callable[[Work, Data], list[Contender]]


def batched(work: Work, data: Data) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v as [B, S, H, D] where requests are alike, as they are where not; pools of pages as they are."""
    if work.ragged:
        return data.q, data.k, data.v
    q, k, v = (tensor.view(work.batch, -1, *tensor.shape[1:]) for tensor in (data.q, data.k, data.v))
    return (q, data.k, data.v) if work.page else (q, k, v)


def call_of(work: Work, data: Data, threshold: float | None = None, count: bool = False) -> skimattn.Params:
    """The call object: dense without ``threshold``, the stat kernel with ``count``. ``out`` is full of NaN."""
    q, k, v = batched(work, data)
    dtype = torch.bfloat16 if work.dtype == "e4m3" else q.dtype
    made = skimattn.Params(
        q,
        k,
        v,
        mask="window" if work.window else work.mask,
        window_size=(work.window - 1, 0) if work.window else (-1, -1),
        skip_softmax_threshold=threshold,
        stats=torch.zeros(2, dtype=torch.int64, device=q.device) if count else None,
        out=torch.full((*q.shape[:-1], work.head_dim_v), float("nan"), dtype=dtype, device=q.device),
    )
    if work.ragged:
        made = replace(made, cu_seqlens_q=data.offsets, max_seqlen_q=max(work.rows))
    if work.page:
        return replace(made, page_table=data.table, seqused_k=data.lens, max_seqlen_k=max(work.lens))
    return replace(made, cu_seqlens_k=data.offsets_k, max_seqlen_k=max(work.lens)) if work.ragged else made


def ours(work: Work, data: Data) -> list[Contender]:
    """Our dense kernel, the skip kernel at each threshold, and what it takes to see the cost of a pre-pass."""
    made = [contender(DENSE, call_of(work, data))]
    made += [contender(skip_name(value), call_of(work, data, value)) for value in work.thresholds]
    return made + (_beside_pre_pass(work, data) if work.pre_pass else [])


def _beside_pre_pass(work: Work, data: Data) -> list[Contender]:
    """The same in bf16, which needs none; and with the rows twice, whose second half is those of the row."""
    q, k, v = (tensor.to(torch.bfloat16) for tensor in (data.q, data.k, data.v))
    plain = contender(IN_BF16, call_of(replace(work, dtype="bf16"), replace(data, q=q, k=k, v=v)))
    q = data.q.view(work.batch, -1, *data.q.shape[1:])
    more = replace(work, rows=(*(2 * rows for rows in work.rows),))
    twice = contender(TWICE, call_of(more, replace(data, q=torch.cat((q, q), 1).flatten(0, 1))))
    return [plain, replace(twice, call=lambda: twice.call()[:, q.shape[1] :])]


def load_fa3() -> Maker:
    """FlashAttention-3 as vLLM builds it, for ragged batches and pages; all head dims are its own affair."""
    return partial(_fa3, fa3_operators())


def _fa3(operators: Any, work: Work, data: Data) -> list[Contender]:
    ones = torch.ones(work.batch, work.heads_kv, device=data.q.device) if work.dtype == "e4m3" else None
    call = partial(
        fa3_forward,
        operators,
        data.q,
        data.k,
        data.v,
        offsets=data.offsets,
        rows=max(work.rows),
        keys=max(work.lens),
        causal=work.causal,
        offsets_k=None if work.page else data.offsets_k,
        lens=data.lens if work.page else None,
        table=data.table,
        descale=ones,
        window=work.window,
        splits=0 if work.page else 1,  # of few rows over a long cache it splits the keys where it thinks that helps
    )
    return [Contender("fa3", call)]


def load_fa4() -> Maker:
    """FlashAttention-4, the CuTe DSL implementation."""
    return partial(_fa4, module_of("flash_attn.cute"))


def _fa4(module: Any, work: Work, data: Data) -> list[Contender]:
    if work.page or work.dtype == "e4m3":
        raise MissingError("measured in 16 bits and without pages only")
    q, k, v = batched(work, data)
    options: dict[str, object] = {"causal": work.causal}
    if work.window:
        options["window_size"] = (work.window - 1, 0)
    if not work.ragged:
        return [Contender("fa4", lambda: first(module.flash_attn_func(q, k, v, **options)))]
    options |= {"cu_seqlens_q": data.offsets, "cu_seqlens_k": data.offsets_k}
    options |= {"max_seqlen_q": max(work.rows), "max_seqlen_k": max(work.lens)}
    return [Contender("fa4", lambda: first(module.flash_attn_varlen_func(q, k, v, **options)))]


def _alike(make: peers.Maker, work: Work, data: Data) -> list[Contender]:
    """What a peer of ``bench prefill`` does of a row: requests of one length, without pages or a window."""
    if work.ragged or work.page or work.window or (work.causal and work.rows != work.lens):
        raise MissingError("measured on requests of one length, without pages or a window only")
    shape = Shape(work.rows[0], work.mask, work.heads_q, work.heads_kv, work.head_dim, work.dtype, work.batch)
    nothing = np.zeros((work.heads_kv, 1), np.bool_)  # no peer is told what was planted
    return make(Inputs(*batched(work, data), nothing), shape, None if work.planted is None else THRESHOLD)


LOADERS: dict[str, Callable[[], Maker]] = {
    "fa3": load_fa3,
    "fa4": load_fa4,
    "cudnn": lambda: partial(_alike, peers.load_cudnn()),
    "fmha_v2": lambda: partial(_alike, peers.load_fmha_v2()),
}
