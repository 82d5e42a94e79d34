"""A batch as engines schedule it, and attention of one layer to it as one call of skimattn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from ...params import Params


@dataclass(frozen=True)
class Pages:
    """Keys and values of a layer, views of its cache, as :class:`skimattn.Params` takes them.

    Args:
        k: ``[blocks, block, Hkv, D]`` or ``[blocks, Hkv, block, D]``, bf16, fp16 or e4m3.
        v: likewise.
        layout: ``"NHD"`` or ``"HND"``.
    """

    k: torch.Tensor
    v: torch.Tensor
    layout: Literal["NHD", "HND"]

    @property
    def by_slot(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as ``[blocks, block, Hkv, D]``."""
        return (self.k, self.v) if self.layout == "NHD" else (self.k.transpose(1, 2), self.v.transpose(1, 2))

    @property
    def block(self) -> int:
        """Keys in a block."""
        return self.k.shape[1 if self.layout == "NHD" else 2]


@dataclass(frozen=True)
class Batch:
    """The requests of a forward, end to end; what back ends call metadata.

    Args:
        tokens: rows of q in use, those of padding among them.
        starts: int32 ``[B + 1]``, where each request begins.
        lengths: int32 ``[B]``, keys of each, new ones included.
        table: int32 ``[B, most blocks]``.
        longest_q: the most rows of a request, as the host knows it.
        longest_k: the most keys, likewise.
        skips: by layer name what it skips, as arguments of :class:`skimattn.Params`; others are dense.
    """

    tokens: int
    starts: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor
    longest_q: int
    longest_k: int
    skips: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerOptions:
    """What a layer is, whatever the batch.

    Args:
        scale: of the scores.
        window: keys that a row sees, itself included; None: all.
        softcap: 0: none.
        alibi_slopes: float32 ``[Hq]``, or None.
        sinks: float32 ``[Hq]``, or None.
    """

    scale: float
    window: int | None = None
    softcap: float = 0.0
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None

    def with_sinks(self, sinks: torch.Tensor) -> LayerOptions:
        """The same with sinks of any type of float."""
        return replace(self, sinks=sinks.float())


def params_of(
    batch: Batch,
    name: str,
    options: LayerOptions,
    q: torch.Tensor,
    pages: Pages,
    out: torch.Tensor,
    descales: Mapping[str, torch.Tensor] | None = None,
) -> Params:
    """The call of one layer.

    Args:
        batch: the requests.
        name: of the layer.
        options: of the layer.
        q: ``[tokens or more, Hq, D]``, bf16, fp16, or e4m3 with an 8-bit cache.
        pages: of the layer, with the new keys in it.
        out: shaped as ``q``, where to write; rows of padding are not written.
        descales: of 8-bit q, k and v.
    """
    arguments: dict[str, Any] = {**(descales or {}), **batch.skips.get(name, {})}
    if options.window is None:
        arguments["mask"] = "causal"
    else:
        arguments |= {"mask": "window", "window_size": (options.window - 1, 0)}
    return Params(
        q[: batch.tokens],
        pages.k,
        pages.v,
        page_table=batch.table,
        kv_layout=pages.layout,
        cu_seqlens_q=batch.starts,
        seqused_k=batch.lengths,
        max_seqlen_q=batch.longest_q,
        max_seqlen_k=batch.longest_k,
        softmax_scale=options.scale,
        softcap=options.softcap,
        alibi_slopes=options.alibi_slopes,
        sinks=options.sinks,
        out=out[: batch.tokens],
        **arguments,
    )
