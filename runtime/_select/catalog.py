"""What exists and why a call gets the kernel it gets: ``variants()`` and ``explain()``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from skimattn.codegen import matrix, metadata, sets
from skimattn.codegen.spec import KernelSpec

from .._call.outputs import check_skip_map
from .._call.problem import Problem
from .._call.validate import validate
from .._cuda.device import device
from ..errors import ArgumentError, NoKernelError
from ..params import Params
from . import kernels, workspace
from .dispatch import REFERENCE_VARIABLE, arch_of, reference_arch, specs_of


def variants() -> list[dict[str, Any]]:
    """Every kernel of the matrix as a row like those of ``build.py --list --json``, with ``built`` true or false."""
    built = {spec: located.kernel for spec, located in kernels.built().items()}
    stale = {spec for spec, kernel in built.items() if kernels.is_stale(kernel)}
    return [metadata.listing(spec, built.get(spec), spec in stale) for spec in matrix.all_specs()]


@dataclass(frozen=True)
class Explanation:
    """Why a call, or a description of a kernel, is accepted or refused.

    ``path`` is ``"cuda"`` (a kernel), ``"reference"`` (CPU tensors) or ``"none"`` (refused). ``kernel`` is the kernel's
    name; the reference computes what that kernel would. ``tile`` is (rows, keys). ``built`` is whether the kernel was
    built from the sources of now. ``verified`` says by what kernels of its family are known to be right.
    ``trace`` tells every step. A call may need several kernels: then these are about the first that ``trace`` names,
    and ``built`` about all of them.
    """

    accepted: bool
    reason: str
    path: str
    kernel: str | None
    spec: KernelSpec | None
    tile: tuple[int, int] | None
    group_rows: int | None
    order: str | None
    built: bool
    verified: str | None
    trace: tuple[str, ...]

    def __str__(self) -> str:
        """The trace, a line per step."""
        return "\n".join(self.trace)


def explain(params: Params | None = None, /, **fields: object) -> Explanation:
    """Say what ``launch(params)`` would run, or whether the kernel that ``fields`` describe exists; runs nothing.

    Args:
        params: a call; nothing is launched and nothing is written.
        fields: instead of a call, features of a kernel, such as ``mask="causal", head_dim=128, skip="stat"``.
    """
    if (params is None) == (not fields):
        raise ArgumentError("explain: expected either a skimattn.Params or fields of a kernel (got both or neither)")
    return _explain_fields(fields) if params is None else _explain_call(params)


def _explain_fields(fields: dict[str, object]) -> Explanation:
    try:
        verdict = matrix.judge_values(fields)
    except ValueError as error:
        raise ArgumentError(f"explain: {error}") from error
    if isinstance(verdict, matrix.Rejected):
        return _refused(f"rule {verdict.rule}: {verdict.reason}", [])
    return _accepted(verdict.spec, "cuda", [])


def _explain_call(params: Params) -> Explanation:
    trace: list[str] = []
    try:
        problem = validate(params)
        trace.append(f"arguments: accepted ({_summary(problem)})")
        on_gpu = problem.device.type == "cuda"
        arch = arch_of(device(problem.device.index or 0).capability) if on_gpu else reference_arch()
        specs = specs_of(problem, arch)
        rows = {phase: kernels.unbuilt_row(spec) for phase, spec in specs.items()}
        check_skip_map(problem, rows.get("prefill"), rows.get("decode"))
    except (ArgumentError, NoKernelError) as error:
        return _refused(str(error), trace)
    spec = specs.get("prefill") or specs["decode"]
    trace.append(f"head_dim: {problem.head_dim}, {problem.head_dim_v} run on {spec.head_dim}, {spec.head_dim_v}")
    trace.append(f"kind: {_kind_reason(problem)}")
    trace.append(f"phase: {_PHASE_REASONS['prefill' in specs, 'decode' in specs]}")
    if on_gpu and "transpose" in specs:
        trace.append(f"workspace: {workspace.describe(problem, rows['transpose'])}")
    if not on_gpu:
        specs = {phase: spec for phase, spec in specs.items() if phase not in matrix.HELPERS}  # it has all at hand
    found = [_accepted(spec, "cuda" if on_gpu else "reference", trace) for spec in specs.values()]
    for explanation in found:
        if not explanation.accepted:
            return replace(explanation, trace=(*trace, f"rejected: {explanation.reason}"))
    return replace(found[0], built=all(one.built for one in found), trace=tuple(trace))


# By whether requests may be prefill's and decode's.
_PHASE_REASONS = {
    (True, False): "prefill, by the rows and keys of each request, and by which decode kernels there are",
    (False, True): "decode, by the rows and keys of each request",
    (True, True): "decode or prefill, by the rows and keys of each request, which only the device knows",
}


# What kernels of phases do that attend to nothing.
_HELP = {"combine": "which merges the parts of decoded requests", "transpose": "which transposes V for prefill"}


def _summary(problem: Problem) -> str:
    of_q = "ragged" if problem.ragged else "batched"
    of_k = "paged" if problem.paged else "batched" if problem.params.cu_seqlens_k is None else "ragged"
    layout = of_q if of_q == of_k else f"{of_q} q, {of_k} k"
    heads = f"{problem.heads_q} query heads on {problem.heads_kv}"
    return f"{layout}, {problem.batch} requests, {heads}, {problem.dtype}, mask {problem.mask} on {problem.device}"


def _kind_reason(problem: Problem) -> str:
    reasons = {
        "dense": "dense, since skip_softmax_threshold is None",
        "skip": "skip, since skip_softmax_threshold is given",
        "stat": "stat, since skip_softmax_threshold and stats are given",
    }
    return reasons[problem.skip]


def _refused(reason: str, trace: list[str]) -> Explanation:
    return Explanation(
        False, reason, "none", None, None, None, None, None, False, None, (*trace, f"rejected: {reason}")
    )


def _accepted(spec: KernelSpec, path: str, trace: list[str]) -> Explanation:
    located = kernels.find(spec)
    row = located.kernel if located else kernels.unbuilt_row(spec)
    stale = located is not None and kernels.is_stale(located.kernel)
    meaning = f"tile {row.tile_m}x{row.tile_n}, groups of {row.group_rows}, {row.order} order"
    meaning = _HELP.get(spec.phase, meaning)
    trace.append(f"kernel: {row.name}, {meaning}")
    trace.append(f"verified: {row.verified}")
    if path == "reference":
        trace.append("path: reference, since the tensors are on the CPU; it computes what the kernel would")
        trace.append(f"architecture: {spec.arch}; {REFERENCE_VARIABLE} names another one for CPU tensors")
    elif located:
        how = "stale in {}: built from other sources than those of now" if stale else "built in {}"
        trace.append(f"path: cuda, {how.format(located.folder)}")
    elif kernels.jit_enabled():
        trace.append("path: cuda, not built: compiled on first use")
    else:
        why = f"and {kernels.JIT_VARIABLE}=0 forbids compiling it"
        trace.append(f"path: none, not built {why}; to add it: {sets.build_command(spec)}")
        return _refused(f"{spec.name} is not built {why}", trace)
    return Explanation(
        True,
        "accepted",
        path,
        row.name,
        spec,
        (row.tile_m, row.tile_n),
        row.group_rows,
        row.order,
        located is not None and not stale,
        row.verified,
        tuple(trace),
    )
