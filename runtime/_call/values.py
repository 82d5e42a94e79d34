"""Checks of the contents of CPU tensors. Values of device tensors are never read back, so they cannot be checked."""

from __future__ import annotations

from itertools import pairwise

import torch

from ..errors import ArgumentError, expected
from . import options
from .ambient import shielded
from .checks import describe
from .problem import Problem


@shielded()
def check_values(problem: Problem) -> None:
    """What only the contents of CPU tensors tell."""
    params = problem.params
    options.check_values(params)
    _check_offsets("cu_seqlens_q", params.cu_seqlens_q, problem.rows, problem.len_q, "max_seqlen_q")
    _check_offsets("cu_seqlens_k", params.cu_seqlens_k, problem.keys, problem.len_k, "max_seqlen_k")
    rows = _check_used("seqused_q", params.seqused_q, params.cu_seqlens_q, problem.batch, problem.len_q)
    lengths = _check_used("seqused_k", params.seqused_k, params.cu_seqlens_k, problem.batch, problem.len_k)
    if params.page_table is not None:
        _check_page_numbers(problem, rows, lengths)


def _check_used(
    name: str, used: torch.Tensor | None, offsets: torch.Tensor | None, batch: int, longest: int
) -> torch.Tensor:
    """How many rows or keys each request has, [B]; those in use are no more than there are."""
    limits = torch.full((batch,), longest) if offsets is None else offsets.diff()
    if used is None:
        return limits
    if bool(((used < 0) | (used > limits)).any()):
        raise expected(name, f"lengths from 0 to {limits.tolist()}", used.tolist())
    return used


def _check_offsets(name: str, offsets: torch.Tensor | None, total: int, longest: int, hint: str) -> None:
    if offsets is None:
        return
    values = offsets.tolist()
    if values[0] != 0 or values[-1] != total:
        raise expected(name, f"offsets from 0 to {total}, the number of rows", f"{values[0]} to {values[-1]}")
    lengths = [end - start for start, end in pairwise(values)]
    if any(length < 0 for length in lengths):
        raise expected(name, "offsets that never fall", values)
    if max(lengths, default=0) > longest:
        raise expected(hint, f"at least {max(lengths)}, the longest request in {name}", longest)


def _check_page_numbers(problem: Problem, rows: torch.Tensor, lengths: torch.Tensor) -> None:
    """Pages that some row may see are there; those that a window or a chunk has left behind need not be."""
    params = problem.params
    assert params.page_table is not None
    pages = params.k.shape[0]
    for batch, (len_q, len_k) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
        first = first_key(problem, len_k - len_q) // problem.page_size if len_q else len_k
        used = params.page_table[batch, first : -(-len_k // problem.page_size)]
        if bool(((used < 0) | (used >= pages)).any()):
            raise ArgumentError(
                f"page_table: expected page numbers from 0 to {pages - 1} (got {used.tolist()} for request {batch}, "
                f"whose rows see keys in its pages from number {first} on; k is {describe(params.k)})"
            )


def first_key(problem: Problem, diagonal: int) -> int:
    """The first key that a row may see which stands at key ``diagonal``: rows after it see none before that."""
    if problem.mask == "window" and problem.window[0] >= 0:
        return max(0, diagonal - problem.window[0])
    if problem.mask == "chunked":
        start = max(0, diagonal) // problem.chunk_size * problem.chunk_size
        return max(start, diagonal - problem.window[0])
    return 0
