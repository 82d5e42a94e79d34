"""Checks of the contents of CPU tensors. Values of device tensors are never read back, so they cannot be checked."""

from __future__ import annotations

from itertools import pairwise

import torch

from ..errors import ArgumentError, expected
from . import options
from .checks import describe
from .problem import Problem


def check_values(problem: Problem) -> None:
    """What only the contents of CPU tensors tell."""
    params = problem.params
    options.check_values(params)
    _check_offsets("cu_seqlens_q", params.cu_seqlens_q, problem.rows, problem.len_q, "max_seqlen_q")
    _check_offsets("cu_seqlens_k", params.cu_seqlens_k, problem.keys, problem.len_k, "max_seqlen_k")
    limits = torch.full((problem.batch,), problem.len_k)
    if params.cu_seqlens_k is not None:
        limits = params.cu_seqlens_k.diff()
    used = params.seqused_k
    if used is not None and bool(((used < 0) | (used > limits)).any()):
        raise expected("seqused_k", f"lengths from 0 to {limits.tolist()}", used.tolist())
    if params.page_table is not None:
        _check_page_numbers(problem, limits if used is None else used)


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


def _check_page_numbers(problem: Problem, lengths: torch.Tensor) -> None:
    params = problem.params
    assert params.page_table is not None
    pages = params.k.shape[0]
    for batch, length in enumerate(lengths.tolist()):
        used = params.page_table[batch, : -(-length // problem.page_size)]
        if bool(((used < 0) | (used >= pages)).any()):
            raise ArgumentError(
                f"page_table: expected page numbers from 0 to {pages - 1} (got {used.tolist()} for request {batch}; "
                f"k is {describe(params.k)})"
            )
