"""Checks of what a call writes: out, lse, stats and skip_map."""

from __future__ import annotations

import torch
from skimattn.codegen.tiles import GROUP_ROWS

from .call import Params, Problem
from .checks import (
    refuse_overlap,
    require_device,
    require_dtype,
    require_near,
    require_one_writer,
    require_shape,
    require_tensor,
    require_tma_strides,
)
from .errors import expected

INPUTS = (
    "q",
    "k",
    "v",
    "page_table",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "seqused_k",
    "custom_mask",
    "alibi_slopes",
    "sinks",
    "skip_softmax_threshold",
)
OUTPUTS = ("out", "lse", "stats", "skip_map")


def check_outputs(problem: Problem) -> None:
    """Types, shapes and strides of the outputs that the caller gave."""
    params = problem.params
    if not isinstance(params.return_lse, bool):
        raise expected("return_lse", "a bool", repr(params.return_lse))
    if params.out is not None:
        out = _written(problem, "out", params.out, params.q.dtype)
        require_shape("out", out, problem.out_shape)
        require_tma_strides("out", out)
    if params.lse is not None:
        require_shape("lse", _written(problem, "lse", params.lse, torch.float32), problem.lse_shape)
    if params.stats is not None:
        _check_stats(problem, _written(problem, "stats", params.stats, torch.int64))
    if params.skip_map is not None:
        _check_skip_map(problem, _written(problem, "skip_map", params.skip_map, torch.uint8))


def _written(problem: Problem, name: str, value: object, dtype: torch.dtype) -> torch.Tensor:
    tensor = require_tensor(name, value)
    require_dtype(name, tensor, dtype)
    require_device(name, tensor, problem.device)
    require_one_writer(name, tensor)
    return tensor


def _check_stats(problem: Problem, stats: torch.Tensor) -> None:
    require_shape("stats", stats, [2], [problem.batch, 2], [problem.batch, problem.heads_q, 2])
    require_near("stats", stats)
    if stats.stride(-1) != 1 or any(stride % 2 for stride in stats.stride()[:-1]):
        raise expected("stats", "contiguous pairs, their strides a multiple of 2", f"strides {list(stats.stride())}")


def _check_skip_map(problem: Problem, skip_map: torch.Tensor) -> None:
    if problem.skip != "stat":
        raise expected("skip_map", "None without stats", "a tensor")
    require_shape("skip_map", skip_map, [problem.batch, problem.heads_q, "groups", "tiles"])
    groups = -(-problem.len_q // GROUP_ROWS)
    if skip_map.shape[2] < groups:
        hint = " (max_seqlen_q bounds them)" if problem.ragged else ""
        raise expected("skip_map", f"at least {groups} groups for {problem.len_q} rows{hint}", list(skip_map.shape))
    if skip_map.shape[3] > 1 and skip_map.stride(3) != 1:
        raise expected("skip_map", "a contiguous last dimension (stride 1)", f"strides {list(skip_map.stride())}")


def check_skip_map_tiles(problem: Problem, tile_n: int) -> None:
    """The width of ``skip_map``, known once a kernel is chosen."""
    skip_map = problem.params.skip_map
    tiles = -(-problem.len_k // tile_n)
    if skip_map is not None and skip_map.shape[3] < tiles:
        hint = " (max_seqlen_k bounds them)" if problem.ragged or problem.paged else ""
        raise expected(
            "skip_map", f"at least {tiles} tiles of {tile_n} for {problem.len_k} keys{hint}", list(skip_map.shape)
        )


def check_overlap(params: Params) -> None:
    """Outputs that the caller gave share no memory with an input or with each other."""
    given = [(name, getattr(params, name)) for name in OUTPUTS if getattr(params, name) is not None]
    if not given:
        return
    inputs = [(name, getattr(params, name)) for name in INPUTS]
    for index, (name, tensor) in enumerate(given):
        for other_name, other in inputs + given[:index]:
            if isinstance(other, torch.Tensor):
                refuse_overlap(name, tensor, other_name, other)
