"""The block-exact reference: what a named kernel computes, tile by tile, in plain torch on the CPU.

Same tiles, row groups, visiting order and skip decisions as the kernel, same counts and skip map. Scores are
computed in float32; probabilities are rounded to the type of the values before they meet them (8-bit ones as 256
times themselves, which uses that type's range). It differs from a kernel by the order in which float32 sums are taken,
by the kernel's approximate exp2 and tanh, and by what 16-bit probabilities are measured from when they are rounded:
always the running maximum here, on SM100 a base that may lag behind it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from skimattn.codegen.metadata import Kernel

from .._call.ambient import shielded
from .._call.problem import Problem
from .._call.values import first_key
from .._launch.buffers import Buffers

LOGGER = logging.getLogger("skimattn")
LOG2E = math.log2(math.e)
KEPT, SKIPPED = 1, 2
FP8_GAIN = 256.0  # of probabilities that are rounded to e4m3, whose largest value is 448
_announced: set[str] = set()


def attention(problem: Problem, kernel: Kernel, buffers: Buffers) -> None:
    """Compute a validated call on CPU tensors into ``buffers``, as ``kernel`` would on a GPU."""
    if kernel.name not in _announced:
        _announced.add(kernel.name)
        LOGGER.info("CPU tensors: the reference computes what %s would (slow, for trying things out)", kernel.name)
    with shielded():
        for request in _requests(problem, buffers):
            for first_row in range(0, request.len_q, kernel.group_rows):
                _compute_group(problem, kernel, request, first_row)


@dataclass(frozen=True)
class _Request:
    """One request: its rows and keys as [heads, rows or keys, columns], and where its results go."""

    index: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None  # packed bits [1 or Hq, rows, bytes]
    out: torch.Tensor  # [rows, Hq, Dv]
    lse: torch.Tensor | None  # [rows, Hq]
    sinks: torch.Tensor | None  # float32 [Hq]
    slopes: torch.Tensor | None  # float32 [Hq]

    @property
    def len_q(self) -> int:
        return self.q.shape[1]

    @property
    def len_k(self) -> int:
        return self.k.shape[1]


def _requests(problem: Problem, buffers: Buffers) -> Iterator[_Request]:
    params, slopes = problem.params, problem.params.alibi_slopes
    for index in range(problem.batch):
        rows = _rows(problem, index)
        keys, values = _keys_and_values(problem, index)
        yield _Request(
            index=index,
            q=params.q[rows].transpose(0, 1).float(),
            k=keys.transpose(0, 1),
            v=values.transpose(0, 1),
            mask=_packed_rows(problem, buffers.custom_mask, index, rows),
            out=buffers.out[rows],
            lse=None if buffers.lse is None else buffers.lse[rows],
            sinks=buffers.sinks,
            slopes=slopes[index] if slopes is not None and slopes.dim() == 2 else slopes,
        )


def _rows(problem: Problem, index: int) -> slice | tuple[int, slice]:
    """Where one request's rows lie in q and in what is laid out like it."""
    params = problem.params
    start, length = 0, problem.len_q
    if params.cu_seqlens_q is not None:
        start, end = params.cu_seqlens_q[index : index + 2].tolist()
        length = end - start
    if params.seqused_q is not None:
        length = int(params.seqused_q[index])
    rows = slice(start, start + length)
    return rows if problem.ragged else (index, rows)


def _keys_and_values(problem: Problem, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one request as [keys, heads, columns], gathered from their pages where paged."""
    params = problem.params
    start, length = 0, problem.len_k
    if params.cu_seqlens_k is not None:
        start, end = params.cu_seqlens_k[index : index + 2].tolist()
        length = end - start
    if params.seqused_k is not None:
        length = int(params.seqused_k[index])
    if params.page_table is not None:
        key = torch.arange(length)
        # Clamped: pages that no row sees need not be there.
        page = params.page_table[index][key // problem.page_size].long().clamp(0, params.k.shape[0] - 1)
        pools = (pool.transpose(1, 2) if params.kv_layout == "HND" else pool for pool in (params.k, params.v))
        k, v = (pool[page, key % problem.page_size] for pool in pools)
        return k, v
    if params.cu_seqlens_k is not None:
        return params.k[start : start + length], params.v[start : start + length]
    return params.k[index, :length], params.v[index, :length]


def _packed_rows(
    problem: Problem, mask: torch.Tensor | None, index: int, rows: slice | tuple[int, slice]
) -> torch.Tensor | None:
    if mask is None:
        return None
    if isinstance(rows, slice):
        return mask[rows].unsqueeze(0) if mask.dim() == 2 else mask[:, rows]
    if mask.dim() == 4:
        return mask[index if len(mask) > 1 else 0][:, rows[1]]
    return (mask[rows] if mask.dim() == 3 else mask[rows[1]]).unsqueeze(0)


def _visible(problem: Problem, request: _Request, rows: torch.Tensor) -> torch.Tensor:
    """Which keys the rows see: bool [1 or Hq, rows, len_k]."""
    key, len_k = torch.arange(request.len_k), request.len_k
    if request.mask is not None:
        bits = request.mask[:, rows, :, None].bitwise_right_shift(torch.arange(8, dtype=torch.uint8)) & 1
        return bits.flatten(2)[..., :len_k].bool()
    diagonal = (rows + len_k - request.len_q).unsqueeze(1)
    left, right = problem.window
    if problem.mask == "full":
        seen = torch.ones(len(rows), len_k, dtype=torch.bool)
    elif problem.mask == "causal":
        seen = key <= diagonal
    elif problem.mask == "window":
        seen = ((key >= diagonal - left) | (left < 0)) & ((key <= diagonal + right) | (right < 0))
    else:
        assert problem.mask == "chunked", problem.mask
        chunk_of_key, own_chunk = (x.div(problem.chunk_size, rounding_mode="floor") for x in (key, diagonal))
        seen = (chunk_of_key == own_chunk) & (key >= diagonal - left) & (key <= diagonal + right)
    return seen.unsqueeze(0)


def _seen_by_request(problem: Problem, request: _Request) -> torch.Tensor:
    """Which keys some row may see by its place, bool [len_k]; V's others count as zeros, as in kernels."""
    first = first_key(problem, request.len_k - request.len_q)
    return torch.arange(request.len_k) >= first


def _tiles(problem: Problem, visible: torch.Tensor, kernel: Kernel) -> list[int]:
    """The tiles a group visits, in the kernel's order: those between the first and the last key its rows may see."""
    tile_n = kernel.tile_n
    len_k = visible.shape[-1]
    if problem.mask in ("full", "custom"):
        first, last = 0, -(-len_k // tile_n)
    else:
        keys = visible.any(dim=0).any(dim=0).nonzero()
        if not len(keys):
            return []
        first, last = int(keys[0]) // tile_n, int(keys[-1]) // tile_n + 1
    falling = list(range(last - 1, first - 1, -1))
    return falling[-1:] + falling[:-1] if kernel.order == "sink_first" else falling


@dataclass(frozen=True)
class _Units:
    """A raw score times ``natural`` is a logit; times ``log2`` it is one in base 2, which is what kernels compare.

    Both are float32 [Hq or 1, 1]; so is ``cap``, the factor inside the tanh (None without softcap).
    """

    natural: torch.Tensor
    log2: torch.Tensor
    cap: torch.Tensor | None

    @staticmethod
    def of(problem: Problem, index: int) -> _Units:
        params = problem.params
        descale = _descale(problem, params.q_descale, index) * _descale(problem, params.k_descale, index)
        if problem.softcap > 0:
            unit, of_unit = problem.softcap, _float([[1.0]])
            cap = _float(problem.softmax_scale / problem.softcap) * descale
        else:
            unit, of_unit, cap = problem.softmax_scale, descale, None
        return _Units(_float(unit) * of_unit, _float(unit * LOG2E) * of_unit, cap)


def _float(value: float | list[list[float]]) -> torch.Tensor:
    """Whatever torch's default dtype is."""
    return torch.tensor(value, dtype=torch.float32)


def _descale(problem: Problem, value: torch.Tensor | None, index: int) -> torch.Tensor:
    """What stands for one in an 8-bit tensor, for every query head of request ``index``: float32 [Hq or 1, 1]."""
    if value is None:
        return _float([[1.0]])
    if value.dim() < 2:
        return value.reshape(1, 1)
    return value[index].repeat_interleave(problem.heads_q // problem.heads_kv).unsqueeze(1)


class _Softmax:
    """The running softmax of one row group over all heads: m in raw scores, l and o relative to it."""

    def __init__(self, heads: int, rows: int, columns: int, units: _Units, dtype: torch.dtype) -> None:
        self.m = torch.full((heads, rows), -math.inf, dtype=torch.float32)
        self.l = torch.zeros(heads, rows, dtype=torch.float32)
        self.o = torch.zeros(heads, rows, columns, dtype=torch.float32)
        self.units = units
        self.dtype, self.gain = dtype, FP8_GAIN if dtype.itemsize == 1 else 1.0

    def skips(self, scores: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
        """Per head, whether every row agrees that the tile is below ``limit`` (log2 of the threshold, [heads, 1])."""
        highest = scores.amax(dim=-1)
        below = (highest - self.m) * self.units.log2 < limit
        blind = (highest == -math.inf) & (limit > -math.inf)  # as if masked, also where the inputs made it so
        return (below | blind).all(dim=-1)

    def add(self, scores: torch.Tensor, values: torch.Tensor, kept: torch.Tensor) -> None:
        """Take in a tile for the heads that kept it. ``values``: float32 [heads, keys, columns]."""
        m = torch.maximum(self.m, scores.amax(dim=-1))
        base = torch.where(m == -math.inf, 0.0, m) * self.units.log2  # a row that saw nothing yet has only -inf scores
        p = torch.exp2(scores * self.units.log2.unsqueeze(-1) - base.unsqueeze(-1))
        weights = (p * self.gain).to(self.dtype).float() / self.gain
        decay = torch.exp2(self.m * self.units.log2 - base)
        row_sum = self.l * decay + p.sum(dim=-1)
        o = self.o * decay.unsqueeze(-1) + weights @ values
        keep = kept.unsqueeze(-1)
        self.m = torch.where(keep, m, self.m)
        self.l = torch.where(keep, row_sum, self.l)
        self.o = torch.where(keep.unsqueeze(-1), o, self.o)

    def output(self, sinks: torch.Tensor | None, descale: torch.Tensor) -> torch.Tensor:
        """Normalised output [heads, rows, columns], times ``descale`` [heads or 1, 1]; rows without keys give 0."""
        total = self.l
        if sinks is not None:
            total = total + torch.exp(sinks.unsqueeze(-1) - self.m * self.units.natural)
        out = self.o / total.unsqueeze(-1) * descale.unsqueeze(-1)
        return torch.where((self.m == -math.inf).unsqueeze(-1), 0.0, out)

    def lse(self) -> torch.Tensor:
        """Natural log of the sum of exponentials over the kept keys, [heads, rows]."""
        return self.l.log() + self.m * self.units.natural


def _compute_group(problem: Problem, kernel: Kernel, request: _Request, first_row: int) -> None:
    params, heads = problem.params, problem.heads_q
    last_row = min(first_row + kernel.group_rows, request.len_q)
    rows = torch.arange(first_row, last_row)
    visible = _visible(problem, request, rows)
    seen_by_request = _seen_by_request(problem, request)
    units = _Units.of(problem, request.index)
    softmax = _Softmax(heads, len(rows), problem.head_dim_v, units, params.v.dtype)
    limit = _log2_threshold(problem, request.index)
    for tile in _tiles(problem, visible, kernel):
        keys = slice(tile * kernel.tile_n, min((tile + 1) * kernel.tile_n, request.len_k))
        seen = visible[..., keys]
        scores = _scores(problem, request, units, rows, keys).masked_fill(~seen, -math.inf)
        skipped = softmax.skips(scores, limit)
        values = request.v[:, keys].float().masked_fill(~seen_by_request[keys].unsqueeze(-1), 0.0)
        values = values.repeat_interleave(heads // problem.heads_kv, dim=0)
        softmax.add(scores, values, ~skipped)
        _count(problem, request.index, skipped)
        if params.skip_map is not None:
            marks = torch.where(skipped, SKIPPED, KEPT).to(torch.uint8)
            params.skip_map[request.index, :, first_row // kernel.group_rows, tile] = marks
    out = softmax.output(request.sinks, _descale(problem, params.v_descale, request.index))
    request.out[first_row:last_row] = out.transpose(0, 1).to(request.out.dtype)
    if request.lse is not None:
        request.lse[first_row:last_row] = softmax.lse().transpose(0, 1)


def _scores(problem: Problem, request: _Request, units: _Units, rows: torch.Tensor, keys: slice) -> torch.Tensor:
    """Raw scores [Hq, rows, keys] in float32: q.k, or its tanh where capped, less the alibi bias in the same unit."""
    k = request.k[:, keys].float().repeat_interleave(problem.heads_q // problem.heads_kv, dim=0)
    scores = request.q[:, rows] @ k.transpose(1, 2)
    if units.cap is not None:
        scores = torch.tanh(scores * units.cap.unsqueeze(-1))
    slopes = request.slopes
    if slopes is not None:
        diagonal = (rows + request.len_k - request.len_q).unsqueeze(1)
        distance = (diagonal - torch.arange(keys.start, keys.stop)).abs().float()
        scores = scores - (slopes.unsqueeze(1) / units.natural).unsqueeze(-1) * distance
    return scores


def _log2_threshold(problem: Problem, index: int) -> torch.Tensor:
    """log2(min(threshold, 1)) per head as [Hq or 1, 1]; -inf, which skips nothing, for 0 and for dense calls."""
    value = problem.params.skip_softmax_threshold
    threshold = value[index].reshape(-1, 1) if isinstance(value, torch.Tensor) else _float([[problem.threshold]])
    return torch.where(threshold > 0, threshold.clamp(max=1.0).log2(), -math.inf)


def _count(problem: Problem, index: int, skipped: torch.Tensor) -> None:
    stats = problem.params.stats
    if stats is None:
        return
    counts = torch.stack([torch.ones_like(skipped), skipped], dim=-1).to(torch.int64)
    if stats.dim() == 3:
        stats[index] += counts
    else:
        (stats[index] if stats.dim() == 2 else stats).add_(counts.sum(dim=0))
