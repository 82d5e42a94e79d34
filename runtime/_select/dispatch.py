"""From a validated call to the kernel that computes it, or a refusal that says which kernels are near."""

from __future__ import annotations

from skimattn.codegen import matrix, variables
from skimattn.codegen.arch import ARCHS
from skimattn.codegen.spec import KernelSpec

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


def reference_arch(dtype: str) -> str:
    """The architecture whose kernels the reference stands for: the variable's, else what the matrix takes."""
    return variables.choice(REFERENCE_VARIABLE, ARCHS) or str(matrix.complete({"dtype": dtype})["arch"])


def head_dims(phase: str, head_dim: int, head_dim_v: int) -> tuple[int, int]:
    """The (head_dim, head_dim_v) of the kernel that takes the call's; :class:`NoKernelError` if they are too many."""
    found = matrix.head_dims(phase, head_dim, head_dim_v)
    if found is None:
        known = list(matrix.HEAD_DIMS[phase])
        raise NoKernelError(f"head_dim: expected at most one of {known} (got {(head_dim, head_dim_v)})")
    return found


def phase_of(problem: Problem) -> str:
    """Whose kernels compute a call; those of prefill compute all there is so far."""
    del problem
    return "prefill"


def spec_of(problem: Problem, arch: str) -> KernelSpec:
    """The one kernel that the call needs; :class:`NoKernelError` if the matrix does not hold it."""
    phase = phase_of(problem)
    dim, dim_v = head_dims(phase, problem.head_dim, problem.head_dim_v)
    spec = KernelSpec(
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
    )
    verdict = matrix.judge(spec)
    if isinstance(verdict, matrix.Rejected):
        nearest = describe_nearest(spec, matrix.all_specs())
        raise NoKernelError(f"{spec.name}: rejected by rule {verdict.rule}: {verdict.reason}; {nearest}")
    return spec
