"""The requests of a call on the CPU: their rows and keys, wherever they lie, and which keys their rows see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .._call.latent import values_of
from .._call.problem import Problem
from .._call.values import first_key
from .._launch.buffers import Buffers


@dataclass(frozen=True)
class Request:
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

    def distance(self, rows: torch.Tensor, keys: slice) -> torch.Tensor:
        """How many keys lie between the key at which each row stands and each of ``keys``: [rows, keys]."""
        diagonal = (rows + self.len_k - self.len_q).unsqueeze(1)
        return (diagonal - torch.arange(keys.start, keys.stop)).abs()


def requests(problem: Problem, buffers: Buffers) -> Iterator[Request]:
    params, slopes = problem.params, problem.params.alibi_slopes
    for index in range(problem.batch):
        rows = _rows(problem, index)
        keys, values = _keys_and_values(problem, index)
        yield Request(
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
    params, values = problem.params, values_of(problem.params)
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
        pools = (pool.transpose(1, 2) if params.kv_layout == "HND" else pool for pool in (params.k, values))
        k, v = (pool[page, key % problem.page_size] for pool in pools)
        return k, v
    if params.cu_seqlens_k is not None:
        return params.k[start : start + length], values[start : start + length]
    return params.k[index, :length], values[index, :length]


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


def visible(problem: Problem, request: Request, rows: torch.Tensor) -> torch.Tensor:
    """Which keys the rows see: bool [1 or Hq, rows, len_k]."""
    key, len_k = torch.arange(request.len_k), request.len_k
    if request.mask is not None:
        bits = request.mask[:, rows, :, None].bitwise_right_shift(torch.arange(8, dtype=torch.uint8)) & 1
        covered = problem.custom_keys or len_k
        columns = bits.flatten(2)[..., max(covered - len_k, 0) : covered].bool()
        return torch.nn.functional.pad(columns, (max(len_k - covered, 0), 0), value=True)
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


def seen_by_request(problem: Problem, request: Request) -> torch.Tensor:
    """Which keys some row may see by its place, bool [len_k]; V's others count as zeros, as in kernels."""
    first = first_key(problem, request.len_k - request.len_q)
    return torch.arange(request.len_k) >= first


def tile_range(problem: Problem, seen: torch.Tensor, tile_n: int) -> range:
    """The tiles between the first and the last key that some row may see by its place; ``seen``: bool [..., len_k]."""
    len_k = seen.shape[-1]
    if problem.mask in ("full", "custom"):
        return range(-(-len_k // tile_n))
    keys = seen.flatten(0, -2).any(dim=0).nonzero()
    return range(int(keys[0]) // tile_n, int(keys[-1]) // tile_n + 1) if len(keys) else range(0)
