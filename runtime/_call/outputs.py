"""Checks of what a call writes: out, lse, stats and skip_map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles import split

from ..errors import expected
from ..params import Params
from .arguments import INPUTS, OUTPUTS
from .checks import (
    refuse_overlap,
    require_near,
    require_one_writer,
    require_shape,
    require_tma_strides,
)
from .problem import Problem


def check_wanted(params: Params, skip: str) -> None:
    """Whether the outputs that the caller asks for go together."""
    if not isinstance(params.return_lse, bool):
        raise expected("return_lse", "a bool", repr(params.return_lse))
    if params.skip_map is not None and skip != "stat":
        raise expected("skip_map", "None without stats", "a tensor")


def _check_out(problem: Problem) -> None:
    out = problem.params.out
    assert out is not None
    if out.shape == problem.out_shape and out.is_contiguous():
        return  # as q has it, whose sizes were checked
    require_one_writer("out", out)
    require_shape("out", out, problem.out_shape)
    require_tma_strides("out", out)


def _check_lse(problem: Problem) -> None:
    lse = problem.params.lse
    assert lse is not None
    require_one_writer("lse", lse)
    require_shape("lse", lse, problem.lse_shape)


def _check_stats(problem: Problem) -> None:
    stats = problem.params.stats
    assert stats is not None
    require_one_writer("stats", stats)
    require_shape("stats", stats, [2], [problem.batch, 2], [problem.batch, problem.heads_q, 2])
    require_near("stats", stats)
    if stats.stride(-1) != 1 or any(stride % 2 for stride in stats.stride()[:-1]):
        raise expected("stats", "contiguous pairs, their strides a multiple of 2", f"strides {list(stats.stride())}")


def _check_skip_map_form(problem: Problem) -> None:
    skip_map = problem.params.skip_map
    assert skip_map is not None
    require_one_writer("skip_map", skip_map)
    require_shape("skip_map", skip_map, [problem.batch, problem.heads_q, "groups", "tiles"])
    if skip_map.shape[3] > 1 and skip_map.stride(3) != 1:
        raise expected("skip_map", "a contiguous last dimension (stride 1)", f"strides {list(skip_map.stride())}")


# What is checked of the sizes of each output that the caller gives.
CHECKS: Mapping[str, Callable[[Problem], None]] = {
    "out": _check_out,
    "lse": _check_lse,
    "stats": _check_stats,
    "skip_map": _check_skip_map_form,
}


def check_skip_map(problem: Problem, prefill: Kernel | None, decode: Kernel | None) -> None:
    """The height and width of ``skip_map``, known once the kernels are chosen that may run: it holds either's map."""
    skip_map = problem.params.skip_map
    if skip_map is None:
        return
    for dim, needs in ((2, _groups(problem, prefill, decode)), (3, _tiles(problem, prefill, decode))):
        least, why = max(needs)
        if skip_map.shape[dim] < least:
            raise expected("skip_map", f"at least {least} {why}", list(skip_map.shape))


def _groups(problem: Problem, prefill: Kernel | None, decode: Kernel | None) -> Iterator[tuple[int, str]]:
    hint = " (max_seqlen_q bounds them)" if problem.varlen_q else ""
    if prefill is not None:
        least = -(-problem.len_q // prefill.group_rows)
        yield least, f"groups of {prefill.group_rows} for {problem.len_q} rows{hint}"
    if decode is not None:
        per_kv = problem.heads_q // problem.heads_kv
        most = split.MAX_GROUPS * split.GROUP_ROWS if prefill is None else split.most_rows(problem.len_k)
        if problem.latent:
            most = split.MLA_MOST_ROWS
        rows = min(problem.len_q * per_kv, most)
        least = -(-rows // decode.group_rows)
        yield least, f"groups of {decode.group_rows} for {rows} rows of {per_kv} heads{hint}"


def _tiles(problem: Problem, prefill: Kernel | None, decode: Kernel | None) -> Iterator[tuple[int, str]]:
    hint = " (max_seqlen_k bounds them)" if problem.varlen_k else ""
    for kernel in (prefill, decode):
        if kernel is not None:
            yield -(-problem.len_k // kernel.tile_n), f"tiles of {kernel.tile_n} for {problem.len_k} keys{hint}"


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
