"""What a prefill kernel computes: row groups of each head, which walk their tiles in the kernel's order."""

from __future__ import annotations

import math

import torch
from skimattn.codegen.metadata import Kernel

from .._call.problem import Problem
from ._requests import Request, seen_by_request, tile_range, visible
from ._softmax import KEPT, SKIPPED, Softmax, Units, count, descale, log2_threshold, scores


def compute(problem: Problem, kernel: Kernel, request: Request) -> None:
    """One request, as ``kernel`` would."""
    for first_row in range(0, request.len_q, kernel.group_rows):
        _compute_group(problem, kernel, request, first_row)


def _order(kernel: Kernel, tiles: range) -> list[int]:
    falling = list(reversed(tiles))
    return falling[-1:] + falling[:-1] if kernel.order == "sink_first" else falling


def _compute_group(problem: Problem, kernel: Kernel, request: Request, first_row: int) -> None:
    params, heads = problem.params, problem.heads_q
    last_row = min(first_row + kernel.group_rows, request.len_q)
    rows = torch.arange(first_row, last_row)
    seen = visible(problem, request, rows)
    units = Units.of(problem, request.index, heads)
    start = torch.full((heads, len(rows)), -math.inf, dtype=torch.float32)
    softmax = Softmax(start, problem.head_dim_v, units, request.v.dtype)
    limit = log2_threshold(problem, request.index)
    for tile in _order(kernel, tile_range(problem, seen, kernel.tile_n)):
        keys = slice(tile * kernel.tile_n, min((tile + 1) * kernel.tile_n, request.len_k))
        masked = _scores(problem, request, units, rows, keys).masked_fill(~seen[..., keys], -math.inf)
        skipped = softmax.skips(masked, limit)
        values = request.v[:, keys].float().masked_fill(~seen_by_request(problem, request)[keys].unsqueeze(-1), 0.0)
        softmax.add(masked, values.repeat_interleave(heads // problem.heads_kv, dim=0), ~skipped)
        count(problem, request.index, skipped)
        if params.skip_map is not None:
            marks = torch.where(skipped, SKIPPED, KEPT).to(torch.uint8)
            params.skip_map[request.index, :, first_row // kernel.group_rows, tile] = marks
    sinks = None if request.sinks is None else request.sinks.unsqueeze(1)
    out = softmax.output(sinks, descale(params.v_descale, request.index, heads))
    request.out[first_row:last_row] = out.transpose(0, 1).to(request.out.dtype)
    if request.lse is not None:
        request.lse[first_row:last_row] = softmax.lse().transpose(0, 1)


def _scores(problem: Problem, request: Request, units: Units, rows: torch.Tensor, keys: slice) -> torch.Tensor:
    """Raw scores [Hq, rows, keys]."""
    k = request.k[:, keys].float().repeat_interleave(problem.heads_q // problem.heads_kv, dim=0)
    slopes = None if request.slopes is None else request.slopes.unsqueeze(1)
    return scores(units, request.q[:, rows], k, slopes, request.distance(rows, keys))
