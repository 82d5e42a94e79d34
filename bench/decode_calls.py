"""What ``bench decode`` times: our kernels and the peers, each with a call for every copy of the cache."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import skimattn
import torch

from .contender import first
from .decode_inputs import Cache, repaged
from .decode_work import Work
from .names import DENSE, PAGES_OF_64, skip_name, stat_name
from .peers import MissingError, NotRun, fa3_forward, fa3_operators, library, load_named

_MOST_SPLITS = 32  # vLLM's flash_attn_max_num_splits_for_cuda_graph
_XQA_WORKSPACE = 512 << 20
_XQA_GROUPS = (4, 8, 16)  # query heads per KV head for which .peers holds a library, on pages of 64, head_dim 128


@dataclass(frozen=True)
class Rotation:
    """A contender.

    Args:
        name: in tables and result files.
        calls: enqueue the work on each copy of the cache in turn; return the output.
        out: [total rows, Hq, Dv], which all calls write.
        params: the call object of copy 0, where the calls are ours.
    """

    name: str
    calls: tuple[Callable[[], torch.Tensor], ...]
    out: torch.Tensor
    params: skimattn.Params | None = None


Maker = Callable[[Work, Cache], list[Rotation]]


def empty_output(work: Work, cache: Cache) -> torch.Tensor:
    """[total rows, Hq, Dv], full of NaN."""
    size = (sum(work.rows), work.heads_q, work.head_dim_v)
    return torch.full(size, float("nan"), dtype=torch.bfloat16, device=cache.q.device)


def call_of(
    work: Work,
    cache: Cache,
    copy: int,
    out: torch.Tensor,
    threshold: float | None = None,
    stats: torch.Tensor | None = None,
) -> skimattn.Params:
    """The call object: dense without ``threshold``, the stat kernel with ``stats``."""
    shape = () if work.ragged else (work.batch, work.rows[0])
    q, given = (x.view(*shape, *x.shape[1:]) if shape else x for x in (cache.q, out))
    joined = work.layout == "joined"
    k, v = (x.transpose(1, 2) if joined else x for x in (cache.k, cache.v))
    made = skimattn.Params(
        q,
        k,
        v,
        kv_layout="HND" if joined else "NHD",
        page_table=cache.tables[copy],
        seqused_k=cache.lens,
        max_seqlen_k=max(work.lens),
        mask="window" if work.window else "causal",
        window_size=(work.window - 1, 0) if work.window else (-1, -1),
        skip_softmax_threshold=threshold,
        stats=stats,
        out=given,
    )
    if work.ragged:
        made = replace(made, cu_seqlens_q=cache.offsets, max_seqlen_q=max(work.rows))
    if work.cache == "e4m3":
        one = torch.ones(1, device=cache.q.device)
        made = replace(made, k_descale=one, v_descale=one)
    return made


def _ours(name: str, work: Work, cache: Cache, threshold: float | None = None, count: bool = False) -> Rotation:
    out = empty_output(work, cache)
    stats = torch.zeros(2, dtype=torch.int64, device=out.device) if count else None
    made = [call_of(work, cache, copy, out, threshold, stats) for copy in range(len(cache.tables))]

    def launch(params: skimattn.Params) -> torch.Tensor:
        return first(skimattn.launch(params)).view(out.shape)

    return Rotation(name, tuple(partial(launch, params) for params in made), out, made[0])


def ours(work: Work, cache: Cache) -> list[Rotation]:
    """Our dense kernel, the skip kernel at each threshold, the stat kernel at the last, and pages of 64 if wanted."""
    made = [_ours(DENSE, work, cache)]
    made += [_ours(skip_name(value), work, cache, value) for value in work.thresholds]
    if work.thresholds:
        made.append(_ours(stat_name(work.thresholds[-1]), work, cache, work.thresholds[-1], count=True))
    if work.pages_of_64:
        made.append(_ours(PAGES_OF_64, replace(work, page=64), repaged(cache, work, 64)))
    return made


def load_fa3() -> Maker:
    """FlashAttention-3 as vLLM builds it and calls it.

    ``fa3`` chooses splits by its own heuristics inside the call. ``fa3 graph`` is told them, at most 32, by metadata
    that vLLM computes once a step for all layers (not timed) when it captures whole steps.
    Note: the latter takes part in rows of one cache. Beside several in turn the library read out of bounds.
    """
    return partial(_fa3, fa3_operators())


def _fa3(operators: Any, work: Work, cache: Cache) -> list[Rotation]:
    if work.layout == "latent":
        raise MissingError("measured on caches of K and V only")
    eight = work.cache == "e4m3"
    q = cache.q.to(cache.k.dtype)
    ones = torch.ones(work.batch, work.heads_kv, device=q.device) if eight else None
    left, right = (work.window - 1, 0) if work.window else (-1, -1)
    longest, most = max(work.lens), max(work.rows)
    out = empty_output(work, cache)

    def metadata(splits: int) -> Any:
        # fmt: off
        return operators.get_scheduler_metadata(
            work.batch, most, longest, work.heads_q, work.heads_kv, work.head_dim, work.head_dim, q.dtype, cache.lens,
            cache.offsets, None, None, None, None, work.page, 0, True, left, right, False, splits, None, 0,
        )
        # fmt: on

    def call(table: torch.Tensor, given: Any, splits: int) -> torch.Tensor:
        return fa3_forward(
            operators,
            q,
            cache.k,
            cache.v,
            offsets=cache.offsets,
            rows=most,
            keys=longest,
            causal=True,
            lens=cache.lens,
            table=table,
            out=out,
            descale=ones,
            window=work.window,
            metadata=given,
            splits=splits,
        )

    variants: dict[str, tuple[Any, int]] = {"fa3": (None, 0)}
    if len(cache.tables) == 1:
        variants["fa3 graph"] = (metadata(_MOST_SPLITS), _MOST_SPLITS)
    return [
        Rotation(name, tuple(partial(call, table, *rest) for table in cache.tables), out)
        for name, rest in variants.items()
    ]


def load_flashmla() -> Maker:
    """FlashMLA's dense decode for Hopper, from the library that vLLM builds; its plan is computed once, not timed."""
    return partial(_flashmla, library("FLASHMLA_LIBRARY")._flashmla_C)


def _flashmla(operators: Any, work: Work, cache: Cache) -> list[Rotation]:
    if work.layout != "latent":
        raise MissingError("takes latent caches only")
    q = cache.q.view(work.batch, work.rows[0], *cache.q.shape[1:])
    out = empty_output(work, cache)
    packed = out.view(work.batch, work.heads_kv, -1, work.head_dim_v)  # rows of all tokens, as it wants its output
    plan: list[Any] = [None, None]

    def call(table: torch.Tensor) -> torch.Tensor:
        arguments = (q, cache.k, work.head_dim_v, cache.lens, table, work.head_dim**-0.5, True, *plan)
        result = operators.dense_decode_fwd(*arguments, packed)
        plan[:] = result[2:4]
        return first(result).view(out.shape)

    call(cache.tables[0])
    return [Rotation("flashmla", tuple(partial(call, table) for table in cache.tables), out)]


def load_xqa() -> Maker:
    """XQA of FlashInfer (TensorRT-LLM's decode kernel), without its skip, which FlashInfer does not offer."""
    try:
        ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)  # its libraries use the driver without naming it
        return partial(_xqa, import_module("flashinfer.decode").xqa_batch_decode_with_kv_cache)
    except ModuleNotFoundError as error:
        raise MissingError(f"flashinfer.decode cannot be imported: {error}") from error


def _xqa(decode: Any, work: Work, cache: Cache) -> list[Rotation]:
    group = work.heads_q // work.heads_kv
    built = _XQA_GROUPS if work.cache == "bf16" else _XQA_GROUPS[-1:]
    fits = (work.head_dim, work.page, work.window, work.layout) == (128, 64, 0, "split")
    if not fits or {*work.rows} != {1} or group not in built:
        raise MissingError("no library of it was built for this shape")
    workspace = torch.zeros(_XQA_WORKSPACE, dtype=torch.uint8, device=cache.q.device)
    out = empty_output(work, cache)
    scales = {"bmm1_scale": work.head_dim**-0.5, "bmm2_scale": 1.0, "kv_layout": "NHD"}

    def call(table: torch.Tensor) -> torch.Tensor:
        arguments = (cache.q, (cache.k, cache.v), workspace, table, cache.lens, max(work.lens))
        return first(decode(*arguments, out=out, **scales))

    return [Rotation("xqa", tuple(partial(call, table) for table in cache.tables), out)]


LOADERS: dict[str, Callable[[], Maker]] = {"fa3": load_fa3, "xqa": load_xqa, "flashmla": load_flashmla}


def load(names: Iterable[str]) -> tuple[dict[str, Maker], list[NotRun]]:
    """Load the named peers: what can make the calls of each that is there, and those that are not."""
    return load_named(LOADERS, names)
