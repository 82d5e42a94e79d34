"""From a validated call to the kernels that compute it, or a refusal that says which kernels are near."""

from __future__ import annotations

from collections.abc import Callable

from skimattn.codegen import matrix, variables
from skimattn.codegen.arch import ARCHS
from skimattn.codegen.spec import KernelSpec
from skimattn.codegen.tiles import split

from .._call.problem import Problem
from ..errors import NoKernelError
from .nearest import describe_nearest

REFERENCE_VARIABLE = "SKIMATTN_REFERENCE"  # the architecture whose kernels the reference stands for on CPU tensors
BY_CAPABILITY = {arch.capability: arch.name for arch in ARCHS.values()}


def arch_of(capability: tuple[int, int]) -> str:
    """The architecture name of a device; :class:`NoKernelError` if no kernels exist for it."""
    if capability not in BY_CAPABILITY:
        known = " or ".join(f"{major}.{minor} ({name})" for (major, minor), name in BY_CAPABILITY.items())
        raise NoKernelError(
            f"device: expected compute capability {known} (got {capability[0]}.{capability[1]}); "
            "there are no kernel specs for it, and no build adds them"
        )
    return BY_CAPABILITY[capability]


def reference_arch() -> str:
    """The architecture whose kernels the reference stands for: the variable's, else what the matrix takes."""
    return variables.choice(REFERENCE_VARIABLE, ARCHS) or str(matrix.complete({})["arch"])


def head_dims(arch: str, phase: str, dtype: str, head_dim: int, head_dim_v: int) -> tuple[int, int]:
    """The (head_dim, head_dim_v) of the kernel that takes the call's; :class:`NoKernelError` if they are too many."""
    found = matrix.head_dims(arch, phase, dtype, head_dim, head_dim_v)
    if found is None:
        known = list(matrix.dims_of(arch, phase, dtype))
        raise NoKernelError(f"head_dim: expected at most one of {known} (got {(head_dim, head_dim_v)})")
    return found


def phases_of(problem: Problem, arch: str) -> tuple[str, ...]:
    """The phases that requests of a call may be in, from what the host knows: ``prefill``, ``decode`` or both.

    Lengths that only the device knows may be anything up to their bound. Fewer rows and more keys speak for decode.
    """
    return phase_rule(problem, arch)(problem.len_q, problem.len_k)


def phase_rule(problem: Problem, arch: str) -> Callable[[int, int], tuple[str, ...]]:
    """What :func:`phases_of` says of calls that differ from this one in sizes only, by ``len_q`` and ``len_k``."""
    if problem.latent:
        return lambda _len_q, _len_k: ("decode",)
    if not _has_decode(problem, arch):
        return lambda _len_q, _len_k: ("prefill",)
    per_kv, varlen_q, varlen_k = problem.heads_q // problem.heads_kv, problem.varlen_q, problem.varlen_k

    has_cache = problem.has_cache

    most_rows = split.MAX_GROUPS * split.GROUP_ROWS // per_kv
    if isinstance(matrix.judge(_spec(problem, arch, "prefill")), matrix.Rejected):
        # Decode takes what it can, whatever the keys; of longer requests it is prefill's kernel that is missing.
        return lambda len_q, _len_k: ("decode",) if len_q <= most_rows else ("prefill",)
    if problem.own_keys:
        return lambda _len_q, _len_k: ("prefill",)
    of_long: tuple[str, ...] = ("prefill", "decode") if varlen_q else ("prefill",)

    def phases(len_q: int, len_k: int) -> tuple[str, ...]:
        if len_q > most_rows:  # which :func:`split.decodes` says too, but this comes in every launch
            return of_long
        if split.decodes(len_q, 0 if varlen_k else len_k, per_kv, has_cache):
            return ("decode",)  # those of fewer rows or more keys are too
        may_decode = varlen_q or split.decodes(len_q, len_k, per_kv, has_cache)
        return ("prefill", "decode") if may_decode else ("prefill",)

    return phases


def _has_decode(problem: Problem, arch: str) -> bool:
    """Whether the call's features have a decode kernel."""
    if matrix.head_dims(arch, "decode", problem.dtype, problem.head_dim, problem.head_dim_v) is None:
        return False
    return isinstance(matrix.judge(_spec(problem, arch, "decode")), matrix.Accepted)


def specs_of(problem: Problem, arch: str) -> dict[str, KernelSpec]:
    """The kernels that the call needs, by phase: of each that some request may be in, and those that help them.

    ``combine`` comes with ``decode``, and ``transpose`` with prefill of 8 bits on SM90.

    Raises:
        NoKernelError: the matrix does not hold one of them.
    """
    specs = {phase: spec_of(problem, arch, phase) for phase in phases_of(problem, arch)}
    if "decode" in specs:
        specs["combine"] = matrix.combine_spec(specs["decode"])
    transpose = matrix.transpose_spec(specs["prefill"]) if "prefill" in specs else None
    return specs if transpose is None else specs | {"transpose": transpose}


def spec_of(problem: Problem, arch: str, phase: str = "prefill") -> KernelSpec:
    """The kernel of one phase that the call needs; :class:`NoKernelError` if the matrix does not hold it.

    Decode of MLA in latent form is a phase of its own among kernels, and ``decode`` everywhere else.
    """
    spec = _spec(problem, arch, phase)
    verdict = matrix.judge(spec)
    if isinstance(verdict, matrix.Rejected):
        nearest = describe_nearest(spec, matrix.all_specs())
        why = _why_prefill(problem) if phase == "prefill" and _has_decode(problem, arch) else ""
        raise NoKernelError(f"{spec.name}: rejected by rule {verdict.rule}: {verdict.reason}; {why}{nearest}")
    return spec


def _why_prefill(problem: Problem) -> str:
    """Why a call that decode kernels exist for needs more than those."""
    per_kv = problem.heads_q // problem.heads_kv
    return (
        f"decode kernels take such tensors, but q has up to {problem.len_q} rows a request, which with the {per_kv} "
        f"query heads of a kv head are {problem.len_q * per_kv}, and they take up to "
        f"{split.MAX_GROUPS * split.GROUP_ROWS} (max_seqlen_q bounds the rows of a ragged q); "
    )


def _spec(problem: Problem, arch: str, phase: str) -> KernelSpec:
    if problem.latent:
        phase = "mla"
    dim, dim_v = head_dims(arch, phase, problem.dtype, problem.head_dim, problem.head_dim_v)
    return KernelSpec(
        arch=arch,
        phase=phase,
        dtype=problem.dtype,
        out_dtype=problem.form.out_dtype,
        head_dim=dim,
        head_dim_v=dim_v,
        mask=problem.mask,
        paged=problem.paged,
        skip=problem.skip,
        softcap=problem.softcap > 0,
        alibi=problem.form.alibi,
        kv_dtype=problem.form.kv_dtype,
    )
