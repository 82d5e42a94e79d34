"""A call whose skipped tiles are known by construction: key 0 outweighs every other key of every row."""

from __future__ import annotations

from typing import Any

import torch

B, ROWS, KEYS, HEADS = 2, 70, 300, 4
TILES = 3  # of 128 keys, visited by 2 groups of 64 rows in every head (of the kernels of SM90 and of the reference)
THRESHOLD = 0.5  # far above exp(-32 + 1), what every other key weighs beside the planted one
Call = dict[str, Any]


def tensors(rows: int = ROWS, keys: int = KEYS, seed: int = 0, device: str = "cpu") -> dict[str, torch.Tensor]:
    """q, k and v in bf16, with 4 heads on 2 and 64 columns; without a mask every tile but the first can be skipped.

    Column 0 of q is 16, that of k is 16 at key 0 and 0 elsewhere; the rest is noise of at most 0.5.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.rand(B, length, heads, 64, generator=generator) - 0.5
        for length, heads in ((rows, HEADS), (keys, HEADS // 2), (keys, HEADS // 2))
    )
    q[..., 0], k[..., 0], k[:, 0, :, 0] = 16.0, 0.0, 16.0
    return {name: tensor.bfloat16().to(device) for name, tensor in zip("qkv", (q, k, v), strict=True)}


def counters(device: str = "cpu") -> dict[str, torch.Tensor]:
    """All that a call adds to or marks, as it is before the call."""
    return {
        "stats": torch.full((B, HEADS, 2), 5, device=device),
        "skip_map": torch.full((B, HEADS, 2, TILES), 9, dtype=torch.uint8, device=device),
    }


def outputs(device: str = "cpu") -> dict[str, torch.Tensor]:
    """Outputs to be given to a call, as they are before it."""
    return {
        "out": torch.full((B, ROWS, HEADS, 64), 7.0, dtype=torch.bfloat16, device=device),
        "lse": torch.full((B, ROWS, HEADS), 7.0, device=device),
    }


def skipped_all_but_the_first(stats: torch.Tensor, calls: int = 1) -> bool:
    """Whether ``stats`` of ``counters`` is what the planted key makes of it: 2 groups of 3 tiles, 2 of them skipped."""
    return stats.tolist() == [[[5 + calls * 6, 5 + calls * 4]] * HEADS] * B


def same(first: Any, second: Any) -> bool:
    """Bit for bit, through tuples and dicts."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    return len(first) == len(second) and all(map(same, first, second))
