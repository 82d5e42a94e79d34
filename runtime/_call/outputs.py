"""Checks of what a call writes: out, lse, stats and skip_map."""

from __future__ import annotations

import torch
from skimattn.codegen.metadata import Kernel

from ..errors import expected
from ..params import Params
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
from .dtypes import out_dtypes
from .problem import Problem

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
    "q_descale",
    "k_descale",
    "v_descale",
    "skip_softmax_threshold",
)
OUTPUTS = ("out", "lse", "stats", "skip_map")


def check_outputs(problem: Problem) -> None:
    """Types, shapes and strides of the outputs that the caller gave."""
    params = problem.params
    if not isinstance(params.return_lse, bool):
        raise expected("return_lse", "a bool", repr(params.return_lse))
    if params.out is not None:
        out = _written(problem, "out", params.out, *out_dtypes(params.q.dtype))
        require_shape("out", out, problem.out_shape)
        require_tma_strides("out", out)
    if params.lse is not None:
        require_shape("lse", _written(problem, "lse", params.lse, torch.float32), problem.lse_shape)
    if params.stats is not None:
        _check_stats(problem, _written(problem, "stats", params.stats, torch.int64))
    if params.skip_map is not None:
        _check_skip_map_form(problem, _written(problem, "skip_map", params.skip_map, torch.uint8))


def _written(problem: Problem, name: str, value: object, *dtypes: torch.dtype) -> torch.Tensor:
    tensor = require_tensor(name, value)
    require_dtype(name, tensor, *dtypes)
    require_device(name, tensor, problem.device)
    require_one_writer(name, tensor)
    return tensor


def _check_stats(problem: Problem, stats: torch.Tensor) -> None:
    require_shape("stats", stats, [2], [problem.batch, 2], [problem.batch, problem.heads_q, 2])
    require_near("stats", stats)
    if stats.stride(-1) != 1 or any(stride % 2 for stride in stats.stride()[:-1]):
        raise expected("stats", "contiguous pairs, their strides a multiple of 2", f"strides {list(stats.stride())}")


def _check_skip_map_form(problem: Problem, skip_map: torch.Tensor) -> None:
    if problem.skip != "stat":
        raise expected("skip_map", "None without stats", "a tensor")
    require_shape("skip_map", skip_map, [problem.batch, problem.heads_q, "groups", "tiles"])
    if skip_map.shape[3] > 1 and skip_map.stride(3) != 1:
        raise expected("skip_map", "a contiguous last dimension (stride 1)", f"strides {list(skip_map.stride())}")


def check_skip_map(problem: Problem, kernel: Kernel) -> None:
    """The height and width of ``skip_map``, known once a kernel is chosen."""
    skip_map = problem.params.skip_map
    if skip_map is None:
        return
    for dim, count, size, items, bounded in (
        (2, problem.len_q, kernel.group_rows, "groups of {} for {} rows", "max_seqlen_q" if problem.ragged else ""),
        (3, problem.len_k, kernel.tile_n, "tiles of {} for {} keys", "max_seqlen_k" if _has_lengths(problem) else ""),
    ):
        least = -(-count // size)
        if skip_map.shape[dim] < least:
            hint = f" ({bounded} bounds them)" if bounded else ""
            raise expected("skip_map", f"at least {least} {items.format(size, count)}{hint}", list(skip_map.shape))


def _has_lengths(problem: Problem) -> bool:
    return problem.ragged or problem.paged


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
