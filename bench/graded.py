"""Planted inputs of which each of several thresholds skips a share of its own: what ``bench skip`` draws curves from.

Scores of a key are those of its block: ``level``, in nats, plus noise. Blocks that a threshold is the first to skip lie
midway between it and the threshold before, so neither noise nor rounding to 8 bits moves one across.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from . import decode_inputs, inputs
from .decode_inputs import Cache, fill_normal, store_keys
from .decode_work import Work as Step
from .inputs import BLOCK, TORCH_DTYPES, Inputs
from .shape import Shape

_NOISE = 0.25  # of each element of q and k, across the direction: 0.06 nats of a score
_TOP = 5.0  # nats: the highest level, so that levels lie on both sides of zero and rounding hurts none much
_DEEPER = 1.0  # nats that the lowest level lies below the first threshold
Draw = Callable[..., torch.Tensor]
Thresholds = Sequence[tuple[float, float]]  # (threshold, share), both rising


@dataclass(frozen=True)
class Graded:
    """Tensors of a call of prefill; ``drops[i]``: the blocks that threshold i skips, as in ``Inputs.drop``."""

    inputs: Inputs
    drops: tuple[np.ndarray[tuple[int, int], np.dtype[np.bool_]], ...]


@dataclass(frozen=True)
class GradedCache:
    """Likewise of a decode step; ``drops[i]`` as in ``Cache.drop``."""

    cache: Cache
    drops: tuple[torch.Tensor, ...]


def depths(thresholds: Thresholds) -> list[float]:
    """How far below the highest level, in nats, the blocks lie that each threshold is the first to skip."""
    gaps = [-math.log(threshold) for threshold, _ in thresholds]
    before = [gaps[0] + 2 * _DEEPER, *gaps]
    return [(gap + above) / 2 for gap, above in zip(gaps, before, strict=False)]


def prefill(shape: Shape, thresholds: Thresholds, device: str, seed: int = 0) -> Graded:
    """Self-attention. The whole batch has the same pattern; the first block is never skipped.

    Args:
        shape: of the call, a multiple of 256 keys.
        thresholds: (threshold, share), both rising.
        device: of the tensors.
        seed: of the random numbers.
    """
    if shape.seqlen % BLOCK:
        raise ValueError(f"seqlen: expected a multiple of {BLOCK} for planted inputs (got {shape.seqlen})")
    draw, direction = _drawing(shape.head_dim, device, torch.Generator(device=device).manual_seed(seed))
    rank = inputs.ranked_blocks(draw, shape.heads_kv, shape.seqlen // BLOCK)
    drops = [*_nested(inputs.lowest_blocks(rank, share) for _, share in thresholds)]
    level = _levels(drops, thresholds).to(device).repeat_interleave(BLOCK, 1).t()  # [S, Hkv]
    rows, dtype = (shape.batch, shape.seqlen), TORCH_DTYPES[shape.dtype]
    q = _queries(draw, direction, *rows, shape.heads_q)
    k = _across(draw, direction, *rows, shape.heads_kv) + level[..., None] * direction
    v = draw(*rows, shape.heads_kv, shape.head_dim)
    masks = tuple(drop.numpy() for drop in drops)
    return Graded(Inputs(q.to(dtype), k.to(dtype), v.to(dtype), masks[-1]), masks)


def decode(work: Step, copies: int, thresholds: Thresholds, device: str) -> GradedCache:
    """A step over caches that are laid out as those of ``bench decode``; every KV head of every request differs."""
    generator = torch.Generator(device=device).manual_seed(0)
    cache = decode_inputs.cache_of(work, copies, device)
    draw, direction = _drawing(work.head_dim, device, generator)
    rank = decode_inputs.ranked_blocks(work, copies, generator)
    drops = [*_nested(decode_inputs.lowest_blocks(rank, share) for _, share in thresholds)]
    levels = _levels(drops, thresholds)
    cache.q.copy_(_queries(draw, direction, *cache.q.shape[:2]))
    for copy in range(copies):
        for request, length in enumerate(work.lens):
            level = levels[copy, request].repeat_interleave(work.block, 1).t()
            keys = _across(draw, direction, length, work.heads_kv) + level[..., None] * direction
            store_keys(cache, work, copy, request, keys)
    fill_normal(cache.v, generator)
    return GradedCache(replace(cache, drop=drops[-1]), tuple(drops))


def _drawing(head_dim: int, device: str, generator: torch.Generator) -> tuple[Draw, torch.Tensor]:
    """What draws N(0,1), and a direction of length 1."""

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator)

    return draw, F.normalize(draw(head_dim), dim=0)


def _nested(drops: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """What a threshold skips, a larger one skips too."""
    held = None
    for drop in drops:
        held = drop if held is None else held | drop
        yield held


def _levels(drops: Sequence[torch.Tensor], thresholds: Thresholds) -> torch.Tensor:
    """In nats, float32, as ``drops`` are laid out."""
    level = torch.full(drops[0].shape, _TOP, device=drops[0].device)
    for drop, depth in [*zip(drops, depths(thresholds), strict=True)][::-1]:
        level[drop] = _TOP - depth
    return level


def _across(draw: Draw, direction: torch.Tensor, *size: int) -> torch.Tensor:
    """Noise across the direction, [..., D], which has no part in how far levels lie apart."""
    noise = draw(*size, len(direction)) * _NOISE
    return noise - (noise @ direction)[..., None] * direction


def _queries(draw: Draw, direction: torch.Tensor, *size: int) -> torch.Tensor:
    """Rows whose scores are the level, where they are scaled by D ** -0.5; elements are about N(0,1)."""
    return _across(draw, direction, *size) + math.sqrt(len(direction)) * direction
