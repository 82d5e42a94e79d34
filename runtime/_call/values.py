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
    if params.cu_seqlens_q is not None:
        used = params.seqused_q is not None
        longest = check_offsets("cu_seqlens_q", params.cu_seqlens_q, problem.rows, from_0=not used)
        if not used:
            _check_hint("max_seqlen_q", longest, "cu_seqlens_q", problem.len_q)
    if params.cu_seqlens_k is not None:
        used = params.seqused_k is not None
        longest = check_offsets("cu_seqlens_k", params.cu_seqlens_k, problem.keys, from_0=not used)
        if not used:
            _check_hint("max_seqlen_k", longest, "cu_seqlens_k", problem.len_k)
    rows = _check_used("seqused_q", params.seqused_q, params.cu_seqlens_q, problem.batch, problem.len_q)
    lengths = _check_used("seqused_k", params.seqused_k, params.cu_seqlens_k, problem.batch, problem.len_k)
    if params.page_table is not None:
        _check_page_numbers(problem, rows, lengths)


def _check_used(
    name: str, used: torch.Tensor | None, offsets: torch.Tensor | None, batch: int, longest: int
) -> torch.Tensor:
    """How many rows or keys each request has, [B]; those in use are no more than there are."""
    limits = torch.full((batch,), longest) if offsets is None else offsets.diff().clamp(max=longest)
    if used is None:
        return limits
    if bool(((used < 0) | (used > limits)).any()):
        raise expected(name, f"lengths from 0 to {limits.tolist()}", used.tolist())
    return used


def check_offsets(name: str, offsets: torch.Tensor, total: int, *, from_0: bool = True) -> int:
    """Offsets of a ragged batch of ``total`` rows; returns how many rows the longest request has.

    Without ``from_0`` rows before the first offset may belong to nobody.
    """
    values = offsets.tolist()
    if values[-1] != total or values[0] < 0 or (from_0 and values[0] > 0):
        start = "0" if from_0 else "0 or more"
        raise expected(name, f"offsets from {start} to {total}, the number of rows", f"{values[0]} to {values[-1]}")
    lengths = [end - start for start, end in pairwise(values)]
    if any(length < 0 for length in lengths):
        raise expected(name, "offsets that never fall", values)
    return max(lengths, default=0)


def _check_hint(hint: str, longest: int, name: str, most: int) -> None:
    if longest > most:
        raise expected(hint, f"at least {longest}, the longest request in {name}", most)


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
