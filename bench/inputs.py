"""Inputs of measured calls: N(0,1) for dense speed, planted sparsity for skipping. Never zeros, which run faster."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .shape import Shape

STRATUM = 16  # blocks that hold exactly the planted share
BLOCK = 256  # keys that are planted together; kernels of every tile width up to this can skip them
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "e4m3": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Inputs:
    """``q`` [B, S, Hq, D], ``k`` and ``v`` [B, S, Hkv, D]; ``drop`` bool [Hkv, blocks]: the keys to be skipped."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    drop: np.ndarray[tuple[int, int], np.dtype[np.bool_]]


def normal(shape: Shape, device: str, seed: int = 0) -> Inputs:
    """Everything N(0,1). No skip threshold that is safe to use skips anything here."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(heads: int) -> torch.Tensor:
        size = (shape.batch, shape.seqlen, heads, shape.head_dim)
        dtype = TORCH_DTYPES[shape.dtype]
        drawn = torch.float32 if dtype.itemsize == 1 else dtype  # 8 bits cannot be drawn
        return torch.randn(size, device=device, generator=generator, dtype=drawn).to(dtype)

    blocks = -(-shape.seqlen // BLOCK)
    drop = np.zeros((shape.heads_kv, blocks), np.bool_)
    return Inputs(draw(shape.heads_q), draw(shape.heads_kv), draw(shape.heads_kv), drop)


def planted(shape: Shape, sparsity: float, device: str, seed: int = 0) -> Inputs:
    """A share ``sparsity`` of 256-key blocks has logits about 30 nats below the others.

    Every sound skip rule with a threshold from 1e-9 to 1 skips exactly these blocks, and the output does not change.
    Block 0 is never dropped, so every row has something to keep. The whole batch has the same pattern.
    """
    if shape.seqlen % BLOCK:
        raise ValueError(f"seqlen: expected a multiple of {BLOCK} for planted inputs (got {shape.seqlen})")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: expected 0 to 1 (got {sparsity})")
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator)

    direction = F.normalize(draw(shape.head_dim), dim=0)
    drop = drawn_blocks(draw, shape.heads_kv, shape.seqlen // BLOCK, sparsity)
    unit = math.sqrt(shape.head_dim / 128)  # keeps the distance in nats when softmax_scale is head_dim ** -0.5
    level = torch.where(drop.to(device), -10.0 * unit, 11.0 * unit).repeat_interleave(BLOCK, 1)
    rows = (shape.batch, shape.seqlen)
    q = draw(*rows, shape.heads_q, shape.head_dim) * 0.5 + 16 * direction
    k = draw(*rows, shape.heads_kv, shape.head_dim) * 0.5 + level.t()[None, :, :, None] * direction
    v = draw(*rows, shape.heads_kv, shape.head_dim)
    dtype = TORCH_DTYPES[shape.dtype]
    return Inputs(q.to(dtype), k.to(dtype), v.to(dtype), drop.cpu().numpy())


def drawn_blocks(draw: Callable[..., torch.Tensor], heads: int, blocks: int, sparsity: float) -> torch.Tensor:
    """Which blocks are dropped, bool [heads, blocks]: in every run of 16 blocks the share asked for, at random places.

    So a causal mask, which sees the first blocks more often than the last, meets that share too. ``draw`` gives random
    numbers of a size.
    """
    return lowest_blocks(ranked_blocks(draw, heads, blocks), sparsity)


def ranked_blocks(draw: Callable[..., torch.Tensor], heads: int, blocks: int) -> torch.Tensor:
    """In which order blocks are dropped as more of them are, int64 [heads, blocks]: ranks in their run of 16 blocks."""
    rank = torch.empty(heads, blocks, dtype=torch.int64)
    for start in range(0, blocks, STRATUM):
        order = draw(heads, min(STRATUM, blocks - start))
        if start == 0:
            order[:, 0] = math.inf  # block 0 comes last: it is never dropped
        rank[:, start : start + STRATUM] = order.argsort(1).argsort(1).cpu()
    return rank


def lowest_blocks(rank: torch.Tensor, sparsity: float) -> torch.Tensor:
    """A share of the blocks, bool [heads, blocks], by their ranks."""
    blocks = rank.shape[1]
    ends = torch.arange(0, blocks, STRATUM)
    wanted = (sparsity * (ends + STRATUM).clamp(max=blocks)).round() - (sparsity * ends).round()
    drop = rank < wanted.repeat_interleave(STRATUM)[:blocks]
    drop[:, 0] = False
    return drop


def tile_counts(inputs: Inputs, shape: Shape, tile_n: int, group_rows: int) -> tuple[int, int]:
    """(visited, skipped) tiles that a kernel must count on planted inputs if it visits tile 0 first.

    A row group skips a tile exactly when all keys of it that any of its rows sees belong to dropped blocks.

    Args:
        inputs: planted, or normal (then nothing is skipped).
        shape: of the call.
        tile_n: keys per tile of the kernel.
        group_rows: query rows that decide together.
    """
    groups = np.arange(-(-shape.seqlen // group_rows))[:, None]
    ends = np.minimum((groups + 1) * group_rows, shape.seqlen) if shape.causal else np.full_like(groups, shape.seqlen)
    starts = np.arange(-(-shape.seqlen // tile_n))[None, :] * tile_n
    visited = starts < ends
    last_block = (np.minimum(starts + tile_n, ends) - 1) // BLOCK
    kept_before = np.pad(np.cumsum(~inputs.drop, axis=1), ((0, 0), (1, 0)))  # [Hkv, blocks + 1]
    kept: np.ndarray[Any, np.dtype[np.int64]] = kept_before[:, last_block + 1] - kept_before[:, starts // BLOCK]
    skipped = int((visited & (kept == 0)).sum())
    each = shape.batch * shape.heads_q // shape.heads_kv
    return int(visited.sum()) * shape.heads_kv * each, skipped * each
