"""Reading the tile counts that ``stats`` collects. Nothing here waits for the device."""

from __future__ import annotations

import torch

from ..errors import expected


def sparsity(stats: torch.Tensor) -> torch.Tensor:
    """The skipped share of the visited tiles, float32 ``[...]`` for counts ``[..., 2]``; 0 where none was visited.

    Sum raw counts over requests, heads, launches or ranks first: ratios do not add up.
    """
    if not isinstance(stats, torch.Tensor) or stats.dtype != torch.int64 or stats.dim() < 1 or stats.shape[-1] != 2:
        got = f"{stats.dtype} {list(stats.shape)}" if isinstance(stats, torch.Tensor) else type(stats).__name__
        raise expected("stats", "int64 counts [..., 2]", got)
    visited, skipped = stats.unbind(-1)
    return skipped.to(torch.float32) / visited.clamp(min=1).to(torch.float32)  # whatever the default dtype is
