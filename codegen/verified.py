"""How far kernels were tried: by what those of one family are known to be right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .matrix import HOPPER_DIMS
from .spec import KernelSpec

_IN_PART = "run on an H100: what the benchmark's rows compute, not all test cases"


@dataclass(frozen=True)
class Trial:
    """What is known of the ``kernels`` that it ``applies`` to, and to no trial before it."""

    kernels: str
    applies: Callable[[KernelSpec], bool]
    result: str


TRIALS = (
    Trial("sm100", lambda spec: spec.arch == "sm100", "compiles; verified on the emulator; not run on Blackwell"),
    Trial("sm90 e4m3", lambda spec: "e4m3" in (spec.dtype, spec.keys_dtype), _IN_PART),
    Trial("sm90 mla", lambda spec: spec.phase == "mla", _IN_PART),
    Trial("sm90 decode", lambda spec: spec.phase in ("decode", "combine"), "run on an H100"),
    Trial("sm90 d80, d96, d192", lambda spec: (spec.head_dim, spec.head_dim_v) in HOPPER_DIMS, _IN_PART),
    Trial("sm90", lambda spec: spec.arch == "sm90", "run on an H200 and an H100"),
)


def trial_of(spec: KernelSpec) -> Trial:
    """What is known of one kernel."""
    return next(trial for trial in TRIALS if trial.applies(spec))


def trials_of(specs: Iterable[KernelSpec]) -> list[Trial]:
    """What is known of several kernels, each once, in the order of the kernels."""
    return list(dict.fromkeys(map(trial_of, specs)))
