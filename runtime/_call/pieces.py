"""Pieces of a few keys each that a cache consists of, as views; so requests in one memory become a ragged batch."""

from __future__ import annotations

import torch

from ..errors import expected
from .checks import MAX_DIM


def pieces_apart(name: str, x: torch.Tensor, rows: int) -> int:
    """How many pieces of ``rows`` keys lie from one page or request of ``x`` to the next.

    Args:
        name: of the argument, for what is refused.
        x: ``[pages, page_size, Hkv, columns]``, or requests likewise.
        rows: keys in a piece; a divisor of ``page_size``.

    Raises:
        ArgumentError: no whole number of pieces does, or there are too many.
    """
    step = x.stride(1) * rows
    if len(x) < 2:
        return int(x.shape[1] // rows)
    if step == 0 or x.stride(0) % step:
        wanted = f"pages or requests that lie a multiple of {rows} keys apart, since no copy is made of a cache"
        raise expected(name, wanted, f"strides {list(x.stride())}")
    apart: int = x.stride(0) // step
    if len(x) * apart >= MAX_DIM:
        raise expected(name, f"fewer than 2**30 pieces of {rows} keys", f"{len(x) * apart}")
    return apart


def pieces(x: torch.Tensor, rows: int, apart: int) -> torch.Tensor:
    """All pieces of ``rows`` keys of ``x``, and whatever lies between those of its pages."""
    count = max(0, len(x) - 1) * apart + (x.shape[1] // rows if len(x) else 0)
    return x.as_strided((count, rows, *x.shape[2:]), (x.stride(1) * rows, *x.stride()[1:]))


def ragged_rows(x: torch.Tensor, apart: int) -> torch.Tensor:
    """Requests ``[B, S, Hkv, columns]`` as one ragged ``[rows, Hkv, columns]``, request b from row ``b * apart`` on."""
    return pieces(x, 1, apart).squeeze(1)


def ragged_offsets(first: torch.Tensor, apart: int, rows: int) -> torch.Tensor:
    """``cu_seqlens_k`` of requests that begin at their key ``first`` (int32 ``[B]``), beside ``seqused_k``."""
    begins = torch.arange(len(first), dtype=torch.int32, device=first.device) * apart + first
    return torch.nn.functional.pad(begins, (0, 1), value=rows)
