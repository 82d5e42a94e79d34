"""What is known about each architecture that kernels are made for: where they run, and how far that was tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EMULATED = "compiles; verified on the emulator; not run on a GPU"


@dataclass(frozen=True)
class Arch:
    """One architecture of the feature table.

    ``capability`` is the compute capability of the GPUs that its cubins load on, ``gpus`` names some of them, ``cuda``
    is the oldest CUDA whose compilers take its kernels, and ``verified`` says by what they are known to be right, but
    for those of a phase and dtype in ``emulated``, which no GPU has run.
    """

    name: str
    capability: tuple[int, int]
    gpus: str
    cuda: tuple[int, int]
    verified: str
    emulated: tuple[tuple[str, str], ...] = ()

    def verified_of(self, phase: str, dtype: str) -> str:
        """By what kernels of a phase and dtype are known to be right."""
        return EMULATED if (phase, dtype) in self.emulated else self.verified

    @property
    def target(self) -> str:
        """What compilers call it, such as ``90a``: with the instructions that only this architecture has."""
        return self.name.removeprefix("sm") + "a"


ARCHS: Mapping[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch("sm90", (9, 0), "H100, H200", (12, 8), "run on an H200", (("prefill", "e4m3"), ("transpose", "e4m3"))),
        # 12.8 has no max of three operands; 12.9 has, but keeps too much in registers, so that most kernels spill.
        Arch("sm100", (10, 0), "B200, GB200", (12, 9), "compiles; verified on the emulator; not run on Blackwell"),
    )
}
