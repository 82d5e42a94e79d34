"""Calls of flash-attn's functions as values, and what they mean: dense attention in float64, request by request.

Written from flash-attn's documentation and tests. It shares nothing with the faces, which say windows and lengths in
other words, nor with the oracle of tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from skimattn import flash_attn_interface as fa3
from skimattn.flash_attn_interface import cute as fa4

SPARE = 5  # rows or keys of a request that seqused leaves out; NaN
_UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # rounding moves a value by half of it, relative
_P_UNIT = {**_UNIT, torch.float8_e4m3fn: 2.0**-3}  # likewise probabilities, which have the type of v
FACES: dict[str, ModuleType] = {"fa3": fa3, "fa4": fa4}


@dataclass(frozen=True)
class Seen:
    """Which keys a row sees, its own being i + len_k - len_q. None = unlimited, ``chunk`` 0 = no chunks."""

    left: int | None = None
    right: int | None = None
    chunk: int = 0

    def of(self, len_q: int, len_k: int) -> torch.Tensor:
        """bool ``[len_q, len_k]``."""
        own = torch.arange(len_q).unsqueeze(1) + len_k - len_q
        key = torch.arange(len_k).expand(len_q, len_k)
        seen = torch.ones(len_q, len_k, dtype=torch.bool)
        if self.left is not None:
            seen &= own - key <= self.left
        if self.right is not None:
            seen &= key - own <= self.right
        if self.chunk:
            seen &= torch.floor(key / self.chunk) == torch.floor(own / self.chunk)
        return seen


@dataclass(frozen=True)
class Call:
    """One call of a face. ``arguments`` are passed as they stand and have to mean ``seen``."""

    seen: Seen = Seen()
    arguments: tuple[tuple[str, Any], ...] = ()
    lens: tuple[tuple[int, int], ...] = ((70, 130), (70, 130))
    heads: tuple[int, int] = (4, 2)
    dims: tuple[int, int] = (64, 64)
    dtype: torch.dtype = torch.bfloat16
    q_layout: str = "batched"  # or "ragged"
    kv_layout: str = "batched"  # or "ragged", or "paged"
    seqused: tuple[bool, bool] = (False, False)
    page_size: int = 16
    softcap: float = 0.0
    scale: float | None = None
    sink: torch.dtype | None = None
    descales: bool = False
    face: str = "fa3"

    @property
    def varlen(self) -> bool:
        """Whether it is the function for requests of different lengths."""
        return (self.q_layout, self.kv_layout) != ("batched", "batched") or any(self.seqused)

    def but(self, **changes: Any) -> Call:
        """The same call with other fields."""
        return replace(self, **changes)


@dataclass
class Inputs:
    """The tensors of a call, requests apart in float64 and together as they are passed."""

    q: list[torch.Tensor]
    k: list[torch.Tensor]
    v: list[torch.Tensor]
    sink: torch.Tensor | None
    passed: dict[str, Any]


def inputs_of(call: Call, device: str = "cpu", seed: int = 0) -> Inputs:
    """Random inputs; what is not in use is NaN, which would show."""
    random = torch.Generator().manual_seed(seed)
    batch, (heads_q, heads_kv), (dim, dim_v) = len(call.lens), call.heads, call.dims

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(call.dtype)

    q = [numbers(len_q, heads_q, dim) for len_q, _ in call.lens]
    k = [numbers(len_k, heads_kv, dim) for _, len_k in call.lens]
    v = [numbers(len_k, heads_kv, dim_v) for _, len_k in call.lens]
    passed: dict[str, Any] = {"softcap": call.softcap, "softmax_scale": call.scale, **dict(call.arguments)}
    passed["q"] = _together(call, "q", q, passed)
    passed["k"], passed["v"] = _together(call, "k", k, passed), _together(call, "k", v, passed)
    if call.varlen:
        for name, side in (("q", 0), ("k", 1)):
            if call.seqused[side]:
                passed[f"seqused_{name}"] = torch.tensor([pair[side] for pair in call.lens], dtype=torch.int32)
            passed.setdefault(f"cu_seqlens_{name}", None)
            passed.setdefault(f"max_seqlen_{name}", max(pair[side] for pair in call.lens))
    sink = None
    if call.sink is not None:
        passed["learnable_sink"] = torch.randn(heads_q, generator=random).to(call.sink)
        sink = passed["learnable_sink"].double()
    factors = [torch.ones(batch, heads_kv)] * 3
    if call.descales:
        factors = [0.5 + torch.rand(batch, heads_kv, generator=random) for _ in "qkv"]
        passed |= dict(zip(("q_descale", "k_descale", "v_descale"), factors, strict=True))
    for name, value in passed.items():
        passed[name] = value.to(device) if isinstance(value, torch.Tensor) else value
    factors[0] = factors[0].repeat_interleave(heads_q // heads_kv, dim=1)
    q, k, v = (
        [one.double() * factor[index].unsqueeze(-1) for index, one in enumerate(every)]
        for every, factor in zip((q, k, v), factors, strict=True)
    )
    return Inputs(q, k, v, sink, passed)


def _together(call: Call, name: str, parts: list[torch.Tensor], passed: dict[str, Any]) -> torch.Tensor:
    """The requests in one tensor, laid out as the call says; ``passed`` gets the lengths that this needs."""
    side = "qk".index(name)
    layout, spare = (call.q_layout, call.kv_layout)[side], SPARE * call.seqused[side]
    lens = [len(part) + spare for part in parts]
    shape = (len(parts), max(lens)) if layout == "batched" else (sum(lens),)
    assert layout != "batched" or call.seqused[side] or len(set(lens)) == 1, "a shape says one length"
    if layout == "paged":
        return _in_pages(call, parts, passed)
    whole = torch.full((*shape, *parts[0].shape[1:]), math.nan).to(parts[0].dtype)
    offsets = [sum(lens[:index]) for index in range(len(lens) + 1)]
    for index, part in enumerate(parts):
        (whole[index] if layout == "batched" else whole[offsets[index] :])[: len(part)] = part
    if layout == "ragged":
        passed[f"cu_seqlens_{name}"] = torch.tensor(offsets, dtype=torch.int32)
        # Note: with seqused flash-attn reads it as the most in use, without it as the longest request.
        passed[f"max_seqlen_{name}"] = max(len(part) for part in parts)
    return whole


def _in_pages(call: Call, parts: list[torch.Tensor], passed: dict[str, Any]) -> torch.Tensor:
    """Pages of the requests, in falling order so that neighbours are no neighbours."""
    counts = [-(-len(part) // call.page_size) for part in parts]
    table = torch.zeros(len(parts), max(counts), dtype=torch.int32)
    pool = torch.full((sum(counts) + 1, call.page_size, *parts[0].shape[1:]), math.nan).to(parts[0].dtype)
    page = sum(counts)
    for index, part in enumerate(parts):
        for number, keys in enumerate(part.split(call.page_size)):
            pool[page, : len(keys)] = keys
            table[index, number] = page
            page -= 1
    passed["page_table"] = table
    return pool


def run(call: Call, inputs: Inputs, **own: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the face returns for the call: out and log-sum-exp."""
    function = "flash_attn_varlen_func" if call.varlen else "flash_attn_func"
    wanted = {"return_attn_probs": True} if call.face == "fa3" else {"return_lse": True}
    out, lse = getattr(FACES[call.face], function)(**inputs.passed, **wanted, **own)
    return out, lse


def check(call: Call, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Assert that a face returned what the call means, in flash-attn's shapes and types."""
    q, v = inputs.passed["q"], inputs.passed["v"]
    assert out.shape == (*q.shape[:-1], v.shape[-1]) and lse.dtype == torch.float32
    assert out.dtype == (torch.bfloat16 if call.dtype.itemsize == 1 else call.dtype)
    rows = (q.shape[1],) if call.q_layout == "ragged" else (len(call.lens), q.shape[2])
    assert lse.shape == (*rows, q.shape[-3]) and lse.is_contiguous()
    out, lse = out.cpu().double(), lse.cpu().double().transpose(-1, -2)
    first = 0
    for index, (len_q, _) in enumerate(call.lens):
        if call.q_layout == "ragged":
            got_out, got_lse = out[first : first + len_q], lse[first : first + len_q]
            first += len_q + SPARE * call.seqused[0]
        else:
            got_out, got_lse = out[index, :len_q], lse[index, :len_q]
        wanted_out, wanted_lse, spread = attend(call, inputs, index)
        blind = wanted_lse == -math.inf
        assert torch.equal(blind, got_lse == -math.inf), f"request {index}: rows that see nothing"
        error = (got_lse - wanted_lse).masked_fill(blind, 0.0).abs()
        assert not len(error) or error.max() < 2e-4 + call.softcap * 2.0**-9, f"request {index}: lse {error.max()}"
        unit, p_unit = _UNIT[out_dtype(call)], _P_UNIT[call.dtype]
        bound = (p_unit + call.softcap * 2.0**-8) * spread + unit * wanted_out.abs() + 1e-5
        excess = (got_out - wanted_out).abs() - bound
        assert not len(excess) or bool((excess <= 0).all()), f"request {index}: out {excess.max()} beyond its bound"


def out_dtype(call: Call) -> torch.dtype:
    """What the call returns."""
    return torch.bfloat16 if call.dtype.itemsize == 1 else call.dtype


def attend(call: Call, inputs: Inputs, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(out ``[rows, Hq, Dv]``, log-sum-exp with the sink ``[rows, Hq]``, sum of weights times abs(v) as out)."""
    q, k, v = inputs.q[index], inputs.k[index], inputs.v[index]
    repeat = call.heads[0] // call.heads[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * (call.dims[0] ** -0.5 if call.scale is None else call.scale)
    if call.softcap > 0:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.masked_fill(~call.seen.of(len(q), len(k)), -math.inf)
    if inputs.sink is not None:  # one more key, whose value is 0
        sinks = inputs.sink[:, None, None].expand(-1, len(q), 1)
        scores, v = torch.cat([scores, sinks], dim=2), torch.cat([v, torch.zeros(1, *v.shape[1:]).double()])
    lse = torch.logsumexp(scores, dim=2)
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(2))
    out, spread = (torch.einsum("hij,jhd->ihd", weights, values) for values in (v, v.abs()))
    return out, lse.T, spread
