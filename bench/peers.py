"""The libraries that we are measured beside. Each is loaded if it is there; what is not is reported with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from .contender import Contender, first
from .inputs import Inputs
from .shape import Shape

_WORKSPACE_BYTES = 128 << 20

# Inputs, shape, skip threshold (None: the dense kernel only) -> the calls of one peer.
Maker = Callable[[Inputs, Shape, float | None], list[Contender]]


class MissingError(Exception):
    """The peer cannot run here; the text says why."""


@dataclass(frozen=True)
class NotRun:
    """A peer that was asked for and did not run, where (``"anywhere"``, or the case), and why."""

    peer: str
    case: str
    reason: str


def load_cudnn() -> Maker:
    """cuDNN through torch's scaled_dot_product_attention."""
    cudnn: Any = torch.backends.cudnn
    if not cudnn.is_available():
        raise MissingError("torch has no cuDNN here")
    attention = import_module("torch.nn.attention")

    def make(inputs: Inputs, shape: Shape, threshold: float | None) -> list[Contender]:
        q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))

        def call() -> torch.Tensor:
            with attention.sdpa_kernel(attention.SDPBackend.CUDNN_ATTENTION):
                out = F.scaled_dot_product_attention(q, k, v, is_causal=shape.causal, enable_gqa=True)
            return out.transpose(1, 2)

        return [Contender("cudnn", call)]

    return make


def load_fa4() -> Maker:
    """FlashAttention-4, the CuTe DSL implementation."""
    module = module_of("flash_attn.cute")

    def make(inputs: Inputs, shape: Shape, threshold: float | None) -> list[Contender]:
        q, k, v = inputs.q, inputs.k, inputs.v
        return [Contender("fa4", lambda: first(module.flash_attn_func(q, k, v, causal=shape.causal)))]

    return make


def load_fa3() -> Maker:
    """FlashAttention-3 as vLLM builds it: a library of torch operators that ``FA3_LIBRARY`` names."""
    varlen = fa3_varlen()

    def make(inputs: Inputs, shape: Shape, threshold: float | None) -> list[Contender]:
        q, k, v = (x.flatten(0, 1) for x in (inputs.q, inputs.k, inputs.v))
        offsets = _offsets(shape, q.device)

        def call() -> torch.Tensor:
            return varlen(q, k, v, offsets, offsets, shape.seqlen, shape.seqlen, shape.causal).view(inputs.q.shape)

        return [Contender("fa3", call)]

    return make


# q, k, v [total, heads, D], offsets of queries and keys, the most rows and keys of a request, causal -> out
Varlen = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int, bool], torch.Tensor]


def library(variable: str) -> Any:
    """torch's operators, with those of the library that an environment variable names loaded.

    Raises:
        MissingError: it names none.
    """
    path = os.environ.get(variable)
    if not path:
        raise MissingError(f"the environment variable {variable} does not name its library")
    operators: Any = torch.ops
    operators.load_library(path)
    return operators


def fa3_operators() -> Any:
    """FlashAttention-3's; :class:`MissingError` where its library is not."""
    return library("FA3_LIBRARY")._vllm_fa3_C


def fa3_forward(
    operators: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    offsets: torch.Tensor,
    rows: int,
    keys: int,
    causal: bool,
    offsets_k: torch.Tensor | None = None,
    lens: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    descale: torch.Tensor | None = None,
    window: int = 0,
    metadata: torch.Tensor | None = None,
    splits: int = 1,
) -> torch.Tensor:
    """FlashAttention-3's forward operator, whose arguments have no names.

    Args:
        operators: :func:`fa3_operators`.
        q: [total, Hq, D].
        k: [total, Hkv, D], or [pages, page, Hkv, D].
        v: likewise.
        offsets: int32 [B + 1] of the rows.
        rows: the most of a request.
        keys: likewise.
        causal: bottom-right.
        offsets_k: int32 [B + 1] of keys without pages.
        lens: int32 [B] keys in pages.
        table: int32 [B, pages of a request].
        out: [total, Hq, Dv]; default: a new tensor.
        descale: float32 [B, Hkv] of 8-bit q, k and v.
        window: keys that a row sees, its own included; 0: all.
        metadata: of its scheduler.
        splits: of the keys; 0: as many as it thinks best.
    """
    left, right = (window - 1, 0) if window else (-1, -1)
    # fmt: off
    return first(operators.fwd(
        q, k, v, None, None, None, out, offsets, offsets_k, None, None, lens, rows, keys, table,
        None, None, None, None, None, descale, descale, descale, q.shape[-1]**-0.5, causal, left, right, 0.0,
        True, metadata, splits, None, 0, None, 1, 0, None,
    ))
    # fmt: on


def fa3_varlen() -> Varlen:
    """FlashAttention-3's call for ragged batches; :class:`MissingError` where its library is not."""
    operators = fa3_operators()

    def call(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        offsets_q: torch.Tensor,
        offsets_k: torch.Tensor,
        rows: int,
        keys: int,
        causal: bool,
    ) -> torch.Tensor:
        return fa3_forward(
            operators, q, k, v, offsets=offsets_q, offsets_k=offsets_k, rows=rows, keys=keys, causal=causal
        )

    return call


def load_fmha_v2() -> Maker:
    """fmha_v2 of FlashInfer, which has a skip kernel of its own."""
    module = module_of("flashinfer.prefill")

    def make(inputs: Inputs, shape: Shape, threshold: float | None) -> list[Contender]:
        q = inputs.q.flatten(0, 1)
        pair = torch.stack([inputs.k.flatten(0, 1), inputs.v.flatten(0, 1)], 1)
        workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
        offsets = _offsets(shape, q.device)
        lens = torch.full((shape.batch,), shape.seqlen, dtype=torch.int32, device=q.device)

        def call(out: torch.Tensor, factor: float) -> torch.Tensor:
            mask = "causal" if shape.causal else "padding"
            # fmt: off
            module.trtllm_fmha_v2_prefill(
                (q, pair), "CONTIGUOUS_Q_KV", workspace, lens, shape.seqlen, shape.seqlen, shape.head_dim**-0.5, 1.0,
                shape.batch, offsets, offsets, out=out, mask_mode=mask, skip_softmax_threshold_scale_factor=factor,
            )
            # fmt: on
            return out.view(inputs.q.shape)

        factors = {"fmha_v2": 0.0}
        if threshold:
            factors[f"fmha_v2 skip@{threshold:g}"] = threshold * shape.seqlen  # it divides by the length
        dtype = torch.bfloat16 if shape.dtype == "e4m3" else q.dtype
        outs = {name: torch.full_like(q, float("nan"), dtype=dtype) for name in factors}
        return [
            Contender(name, partial(call, outs[name], factor), partial(outs[name].fill_, float("nan")))
            for name, factor in factors.items()
        ]

    return make


def module_of(name: str) -> Any:
    """The module of a peer; :class:`MissingError` where it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingError(f"{name} cannot be imported: {error}") from error


def _offsets(shape: Shape, device: torch.device) -> torch.Tensor:
    return torch.arange(shape.batch + 1, dtype=torch.int32, device=device) * shape.seqlen


LOADERS: dict[str, Callable[[], Maker]] = {
    "cudnn": load_cudnn,
    "fa4": load_fa4,
    "fa3": load_fa3,
    "fmha_v2": load_fmha_v2,
}


def load(names: Iterable[str]) -> tuple[dict[str, Maker], list[NotRun]]:
    """Load the named peers, cuDNN in any case.

    Returns:
        What can make the calls of each peer that is there, and the peers that are not.
    """
    return load_named(LOADERS, ("cudnn", *names))


M = TypeVar("M")


def load_named(loaders: Mapping[str, Callable[[], M]], names: Iterable[str]) -> tuple[dict[str, M], list[NotRun]]:
    """What the loaders of these names give, and those that cannot run here."""
    made: dict[str, M] = {}
    missing: list[NotRun] = []
    for name in dict.fromkeys(names):
        try:
            made[name] = loaders[name]()
        except Exception as error:  # a foreign library may fail in any way, and must not end the run
            missing.append(NotRun(name, "anywhere", reason_of(error)))
    return made, missing


def reason_of(error: Exception) -> str:
    """An error in one line."""
    text = str(error) if isinstance(error, MissingError) else repr(error)
    return " ".join(text.split())[:400]
