"""What is known about each architecture that kernels are made for: where they run, and what compiles them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """One architecture of the feature table.

    ``capability`` is the compute capability of the GPUs that its cubins load on, ``gpus`` names some of them, and
    ``cuda`` is the oldest CUDA whose compilers take its kernels.
    """

    name: str
    capability: tuple[int, int]
    gpus: str
    cuda: tuple[int, int]

    @property
    def target(self) -> str:
        """What compilers call it, such as ``90a``: with the instructions that only this architecture has."""
        return self.name.removeprefix("sm") + "a"


ARCHS: Mapping[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch("sm90", (9, 0), "H100, H200", (12, 8)),
        # 12.8 has no max of three operands; 12.9 has, but keeps too much in registers, so that most kernels spill.
        Arch("sm100", (10, 0), "B200, GB200", (12, 9)),
    )
}
