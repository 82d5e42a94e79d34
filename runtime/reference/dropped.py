"""How much probability a call left out, by request and head: for looking at, slow, in float64 on the CPU."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles.split import decodes

from .._call.ambient import shielded
from .._call.problem import Problem
from .._call.validate import validate
from .._cuda.device import device
from .._launch.buffers import make_buffers
from .._select.dispatch import arch_of, reference_arch, specs_of
from .._select.kernels import unbuilt_row
from ..errors import expected
from ..params import Params, Role
from ._requests import Request, requests, visible
from ._softmax import SKIPPED, Units, scores

_ROWS = 64  # at a time


def dropped_mass(params: Params, skip_map: torch.Tensor | None = None) -> torch.Tensor:
    """The share of its probability that a row loses to skipped tiles, in the mean over the rows that see a key.

    Probabilities are those of the dense call, with sinks in their denominator.

    Args:
        params: the call. Tensors on a GPU are copied to the CPU.
        skip_map: what it decided, uint8 ``[B, Hq, groups, tiles]``; default: that of ``params``, which was launched.

    Returns:
        float64 ``[B, Hq]`` on the CPU; 0 for requests without rows.

    Raises:
        ArgumentError: there is no skip map, or it is not of this call; else as :func:`skimattn.launch`.
    """
    decisions = params.skip_map if skip_map is None else skip_map
    if decisions is None:
        raise expected("skip_map", "the decisions of the call", "None")
    arch = arch_of(device(params.q.device.index or 0).capability) if params.q.is_cuda else reference_arch()
    problem = validate(_on_cpu(params))
    if decisions.dim() != 4 or decisions.shape[:2] != (problem.batch, problem.heads_q):
        wanted = f"[{problem.batch}, {problem.heads_q}, groups, tiles]"
        raise expected("skip_map", wanted, list(decisions.shape))
    rows = {phase: unbuilt_row(spec) for phase, spec in specs_of(problem, arch).items()}
    buffers, marks = make_buffers(problem.params, problem.out_shape), decisions.cpu()
    result = torch.zeros(problem.batch, problem.heads_q, dtype=torch.float64)
    with shielded():
        for request in requests(problem, buffers):
            kernel = _kernel_of(problem, request, rows)
            result[request.index] = _of_request(problem, request, kernel, marks[request.index])
    return result


def _on_cpu(params: Params) -> Params:
    """The same call on CPU tensors, with no outputs but new ones."""
    changes: dict[str, object] = {}
    for item in fields(Params):
        if item.init:
            value, role = getattr(params, item.name), item.metadata["argument"].role
            if isinstance(value, torch.Tensor):
                changes[item.name] = None if role is Role.OUTPUT else value.cpu()
    return replace(params, **changes)  # type: ignore[arg-type]


def _kernel_of(problem: Problem, request: Request, rows: dict[str, Kernel]) -> Kernel:
    """That of the request's phase, as the reference takes it."""
    per_kv = problem.heads_q // problem.heads_kv
    prefill, decode = rows.get("prefill"), rows.get("decode")
    if prefill and not (decode and decodes(request.len_q, request.len_k, per_kv, problem.has_cache)):
        return prefill
    assert decode, "a call has a kernel"
    return decode


def _of_request(problem: Problem, request: Request, kernel: Kernel, marks: torch.Tensor) -> torch.Tensor:
    """Of each query head [Hq]."""
    units = Units.of(problem, request.index, problem.heads_q)
    total, counted = torch.zeros(2, problem.heads_q, dtype=torch.float64).unbind()
    for first in range(0, request.len_q, _ROWS):
        rows = torch.arange(first, min(first + _ROWS, request.len_q))
        seen = visible(problem, request, rows)
        mass = _probabilities(problem, request, units, rows, seen)
        tiles = torch.arange(request.len_k) // kernel.tile_n
        skipped = _decisions(problem, kernel, marks, rows)[..., tiles] == SKIPPED
        total += mass.masked_fill(~skipped, 0.0).sum((1, 2))
        counted += seen.any(dim=2).sum(1)
    return total / counted.clamp(min=1)


def _probabilities(
    problem: Problem, request: Request, units: Units, rows: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Dense ones, float64 [Hq, rows, keys]; zeros for rows that see nothing."""
    k = request.k.float().repeat_interleave(problem.heads_q // problem.heads_kv, dim=0)
    slopes = None if request.slopes is None else request.slopes.unsqueeze(1)
    raw = scores(units, request.q[:, rows], k, slopes, request.distance(rows, slice(0, request.len_k)))
    logits = (raw * units.natural.unsqueeze(-1)).double().masked_fill(~seen, -torch.inf)
    if request.sinks is not None:
        sinks = request.sinks.double()[:, None, None].expand(-1, len(rows), 1)
        logits = torch.cat([logits, sinks], dim=2)
    probabilities: torch.Tensor = logits.softmax(dim=2)
    return probabilities.nan_to_num(0.0)[..., : request.len_k]


def _decisions(problem: Problem, kernel: Kernel, marks: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Marks of the tiles of each head and row, [Hq, rows, tiles]."""
    heads = torch.arange(problem.heads_q).unsqueeze(1)
    if kernel.phase == "prefill":
        return marks[heads, (rows // kernel.group_rows).unsqueeze(0)]
    per_kv = problem.heads_q // problem.heads_kv
    packed = rows.unsqueeze(0) * per_kv + heads % per_kv
    return marks[heads, packed // kernel.group_rows]
