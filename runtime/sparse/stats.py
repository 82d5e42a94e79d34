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


def dropped_from_lse(kept: torch.Tensor, dense: torch.Tensor, sinks: torch.Tensor | None = None) -> torch.Tensor:
    """The share of its probability that each row lost, from two calls with ``return_lse=True``.

    A row that keeps the sum K of the sum A of its exponentials loses 1 - K / A, and with a sink S in the denominator
    (A - K) / (A + S). So a dense call beside the skipping one tells it on the device, with kernels as they are.

    Args:
        kept: float32 ``[..., Hq]``, of the call that skips.
        dense: of the same call without a threshold.
        sinks: ``[Hq]`` of the calls, if they have any.

    Returns:
        float32 ``[..., Hq]``, computed without a read-back; 0 for rows that see no key. Its resolution is that of the
        LSE, about 1e-6.
    """
    if kept.shape != dense.shape:
        raise expected("dense", f"the LSE of the same call, {list(kept.shape)}", list(dense.shape))
    lost = -torch.expm1((kept - dense).clamp(max=0.0))
    if sinks is not None:
        lost = lost * torch.sigmoid(dense - sinks.to(dense.dtype))
    return torch.where(dense == -torch.inf, 0.0, lost)
