"""How far kernels were tried: by what those of one family are known to be right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .spec import KernelSpec


@dataclass(frozen=True)
class Trial:
    """What is known of the ``kernels`` that it ``applies`` to, and to no trial before it."""

    kernels: str
    applies: Callable[[KernelSpec], bool]
    result: str


TRIALS = (
    Trial("sm100", lambda spec: spec.arch == "sm100", "compiles; verified on the emulator; not run on Blackwell"),
    Trial(
        "sm90 d80, d192 x 192",
        lambda spec: (spec.head_dim, spec.head_dim_v) in ((80, 80), (192, 192)),
        "run on an H200",
    ),
    Trial("sm90", lambda spec: spec.arch == "sm90", "run on an H200 and an H100"),
)


def trial_of(spec: KernelSpec) -> Trial:
    """What is known of one kernel."""
    return next(trial for trial in TRIALS if trial.applies(spec))


def trials_of(specs: Iterable[KernelSpec]) -> list[Trial]:
    """What is known of several kernels, each once, in the order of the kernels."""
    return list(dict.fromkeys(map(trial_of, specs)))
