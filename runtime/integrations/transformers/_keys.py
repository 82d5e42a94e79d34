"""Keys and values as a launch reads them: requests that begin behind padding become a ragged batch, where they lie."""

from __future__ import annotations

import torch

from ..._call.pieces import pieces_apart, ragged_offsets, ragged_rows
from ...errors import ArgumentError


def ragged_keys(
    k: torch.Tensor, v: torch.Tensor, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views ``[rows, Hkv, columns]`` of k and v, and the offsets of requests that begin at their key ``first``.

    Caches hold k and v alike and are not copied. What comes straight from a projection may be laid out differently
    for k and v, which one row of offsets cannot say: then they are copied.

    Args:
        k: ``[B, S, Hkv, D]``, any strides.
        v: ``[B, S, Hkv, Dv]``.
        first: int32 ``[B]``.
    """
    apart = _apart(k)
    if apart is None or apart != _apart(v):
        k, v = (x.contiguous() for x in (k, v))
        apart = k.shape[1]
    k, v = ragged_rows(k, apart), ragged_rows(v, apart)
    return k, v, ragged_offsets(first, apart, len(k))


def _apart(x: torch.Tensor) -> int | None:
    """Rows from one request to the next; None: no number of rows."""
    try:
        apart = pieces_apart("k", x, 1)
    except ArgumentError:
        return None
    return apart if apart >= x.shape[1] else None
