"""The one operator of vLLM that SGLang calls on a CPU."""

from __future__ import annotations

import torch


def rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor | None,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
) -> None:
    """Rotate ``query`` and ``key`` ``[tokens, heads * head_size]`` in place, halves against each other."""
    assert is_neox, "the models of these tests are so"
    cos, sin = cos_sin_cache[positions.flatten()].float()[:, None].chunk(2, dim=-1)
    half = cos.shape[-1]
    for rows in (query, key):
        if rows is None:
            continue
        heads = rows.view(len(cos), -1, head_size)
        first, second = heads[..., :half].float(), heads[..., half : 2 * half].float()
        heads[..., :half] = (first * cos - second * sin).to(rows.dtype)
        heads[..., half : 2 * half] = (second * cos + first * sin).to(rows.dtype)
